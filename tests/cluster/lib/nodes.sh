# shellcheck shell=bash
# A node is a set of namespaces (network, mounts, processes), as a container of Kind is. Its first process keeps them: when that is killed
# the kernel ends everything on the node, containers too, and takes mounts and network with it.
#
# The network: the control plane's node has a bridge, on which it, this machine and the other node meet. Each node has a network of
# pods of its own, and a route to the other's. Nothing leads out of the machine.

HIERARCHIES=(/sys/fs/cgroup/*/) # of cgroup v1; v2 has one only
[[ -f /sys/fs/cgroup/cgroup.controllers ]] && HIERARCHIES=(/sys/fs/cgroup/)

# A living process's start time: an id alone may be another's by now.
born() { awk '$3 != "Z" { print $22 }' "/proc/$1/stat" 2>/dev/null; }
remember() { echo "$2 $(born "$2")" >"$RUN/$1.pid"; }  # NAME ID
running() { # NAME: its id
  local id time
  read -r id time 2>/dev/null <"$RUN/$1.pid" && [[ -n $time && $(born "$id") == "$time" ]] && echo "$id"
}

node_id() { # NODE: the process that keeps it
  [[ " ${NODES[*]} " == *" ${1:-} "* ]] || die "which node? One of: ${NODES[*]}"
  running "$1" || die "the node $1 does not run; start it with: cluster up"
}

in_network() { # NODE COMMAND...: this machine's command, in the node's network
  local id; id=$(node_id "$1"); shift
  nsenter --target "$id" --net -- "$@"
}

start() { # NODE NAME COMMAND...: a daemon on a node; nsenter waits for it, and so stands for it
  local name=$1-$2 id
  id=$(node_id "$1"); shift 2
  running "$name" >/dev/null && return
  setsid nsenter --target "$id" --net --mount --pid --wdns=/ -- "$@" >"$LOGS/$name.log" 2>&1 </dev/null &
  remember "$name" $!
  disown
}

all_nodes_run() {
  local node
  for node in "${NODES[@]}"; do running "$node" >/dev/null || return 1; done
}

nodes_up() {
  all_nodes_run && return
  [[ -z $(ip route show "$LOAD_BALANCERS") ]] || die "this machine already has a route to $LOAD_BALANCERS: $(ip route show "$LOAD_BALANCERS")"
  local node
  for node in "${NODES[@]}"; do cgroups "$node"; namespaces "$node"; done
  network
}

cgroups() { # NODE: a root for its pods, since a kubelet kills what it doesn't know below its own
  local hierarchy group controllers
  for hierarchy in "${HIERARCHIES[@]}"; do
    for group in "$hierarchy$CLUSTER-cluster" "$hierarchy$CLUSTER-cluster/$1"; do
      mkdir -p "$group"
      if [[ -f $group/cgroup.controllers ]]; then # v2, where each level hands controllers on
        controllers=$(sed 's/[^ ]*/+&/g' "$group/cgroup.controllers")
        [[ -z $controllers ]] || echo "$controllers" >"$group/cgroup.subtree_control" 2>/dev/null || true
      elif [[ -f $group/cpuset.cpus ]]; then # v1, where a new group has no processors
        cat "$group/../cpuset.cpus" >"$group/cpuset.cpus"
        cat "$group/../cpuset.mems" >"$group/cpuset.mems"
      fi
    done
  done
}

namespaces() { # NODE
  local own=$STATE/$1 mounts='' folder keeper id
  # What two nodes, or another cluster on this machine, must not share: daemons expect it at fixed places.
  for folder in /run/netns /run/containerd /var/lib/cni /var/lib/kubelet /var/log; do
    mkdir -p "$folder" "$own$folder"
    mounts+="mount --bind '$own$folder' '$folder'; "
  done
  # shellcheck disable=SC2016 # the inner shell's own
  setsid unshare --net --mount --pid --fork --mount-proc --propagation private \
    bash -ec 'mount --make-rshared /; eval "$1"; touch "$2"; while :; do sleep 3600 & wait $!; done' \
    "$CLUSTER-$1" "$mounts" "$RUN/$1.made" >"$LOGS/$1.log" 2>&1 </dev/null &
  keeper=$!
  disown
  wait_for 10 "$1" test -e "$RUN/$1.made"
  id=$(pgrep -P "$keeper")
  remember "$1" "$id"
}

network() {
  local control_plane=${NODES[0]} node other id
  id=$(node_id "$control_plane")
  ip link add "$HOST_LINK" type veth peer name host0 netns "$id"
  ip addr add "$HOST_IP/24" dev "$HOST_LINK"
  ip link set "$HOST_LINK" up
  ip route add "$LOAD_BALANCERS" via "${NODE_IP[$control_plane]}"
  in_network "$control_plane" ip link add nodes0 type bridge
  in_network "$control_plane" ip link set host0 master nodes0 up
  for node in "${NODES[@]:1}"; do
    in_network "$control_plane" ip link add "$node" master nodes0 type veth peer name nodes0 netns "$(node_id "$node")"
    in_network "$control_plane" ip link set "$node" up
  done
  for node in "${NODES[@]}"; do
    in_network "$node" ip link set lo up
    in_network "$node" ip addr add "${NODE_IP[$node]}/24" dev nodes0
    in_network "$node" ip link set nodes0 up
    for other in "${NODES[@]}"; do
      [[ $other == "$node" ]] || in_network "$node" ip route add "${NODE_PODS[$other]}" via "${NODE_IP[$other]}"
    done
    # So that a process of the node may send there: kube-proxy rewrites it.
    in_network "$node" ip route add "$SERVICES" dev nodes0
    in_network "$node" ip route add "$LOAD_BALANCERS" dev nodes0
    in_network "$node" ip route add unreachable default
    in_network "$node" sysctl -qw net.ipv4.ip_forward=1
    in_network "$node" sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true # absent where the kernel always does it
    # Pods are known by their own addresses to each other, and by their node's to all else, which has no route to them.
    in_network "$node" iptables -w -t nat -A POSTROUTING -s "${NODE_PODS[$node]}" ! -d "$PODS" -j MASQUERADE
  done
}

forget() { # stops it, and removes all that it holds
  local node id hierarchy
  for node in "${NODES[@]}"; do
    id=$(running "$node") || continue
    kill -KILL "$id"
    while [[ -e /proc/$id ]]; do sleep 0.1; done
  done
  for hierarchy in "${HIERARCHIES[@]}"; do
    [[ ! -d $hierarchy$CLUSTER-cluster ]] || find "$hierarchy$CLUSTER-cluster" -depth -type d -exec rmdir {} + || true
  done
  for node in "${NODES[@]}"; do rm -rf "${STATE:?}/$node"; done
  rm -rf "$RUN" "$PKI" "$STATE"/*.kubeconfig "$KUBECONFIG_FILE"
  mkdir -p "$RUN" "$PKI"
}
