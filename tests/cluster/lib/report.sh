# shellcheck shell=bash
# What is the matter? For a person, and for the folder that a failed test leaves.

status() {
  local file name id memory stopped=0
  for file in "$RUN"/*.pid; do
    [[ -e $file ]] || die "it does not run; start it with: cluster up"
    name=$(basename "$file" .pid)
    if id=$(running "$name"); then
      memory=$(ps -o rss= --ppid "$id" | sort -n | tail -n 1 || true) # nsenter's child is the daemon
      printf '%-40s running, %4d MiB\n' "$name" $((memory / 1024))
    else
      printf '%-40s stopped; why: cluster logs %s\n' "$name" "$name"
      stopped=1
    fi
  done
  (( ! stopped )) || { say "some of it has stopped; start it again with: cluster up"; return 1; }
  echo
  kube get nodes -o wide
  echo
  kube get services -A | awk 'NR == 1 || $3 == "LoadBalancer"'
}

logs() { # NAME
  local file=$LOGS/${1:-}.log
  [[ -n ${1:-} && -f $file ]] || die "whose log? One of: $(cd "$LOGS" 2>/dev/null && printf '%s ' *.log | sed 's/\.log//g')"
  cat "$file"
}

report() { # FOLDER
  local folder=${1:-} node file namespace pod
  [[ -n $folder ]] || die "into which folder? cluster report FOLDER"
  mkdir -p "$folder"
  status >"$folder/status.txt" 2>&1 || true
  kube get all -A -o wide >"$folder/objects.txt" 2>&1 || true
  kube get events -A --sort-by=.lastTimestamp >"$folder/events.txt" 2>&1 || true
  kube describe nodes >"$folder/nodes.txt" 2>&1 || true
  { kube top nodes; echo; kube top pods -A --containers; } >"$folder/metrics.txt" 2>&1 || true
  kube get pods -A -o json | jq -r '.items[] | select(all(.status.conditions[]?; .type != "Ready" or .status != "True")) |
    "\(.metadata.namespace) \(.metadata.name)"' 2>/dev/null | while read -r namespace pod; do
    kube -n "$namespace" describe pod "$pod"
    kube -n "$namespace" logs "$pod" --all-containers --prefix --tail 200
  done >"$folder/pods-not-ready.txt" 2>&1 || true
  for node in "${NODES[@]}"; do
    { in_network "$node" ip addr; in_network "$node" ip route; in_network "$node" iptables-save; } >"$folder/$node-network.txt" 2>&1 || true
  done
  for file in "$LOGS"/*.log; do tail -n 2000 "$file" >"$folder/$(basename "$file")"; done
  say "report in $folder"
}
