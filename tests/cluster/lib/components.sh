# shellcheck shell=bash
# The daemons: containerd on each node, the control plane on the first, then kubelet and kube-proxy on each, with what a cloud would bring
# (addresses for Services of type LoadBalancer) and what a network plugin would (NetworkPolicies).

containerd_socket() { echo "$STATE/$1/containerd.sock"; }

containerd_up() {
  local node
  for node in "${NODES[@]}"; do
    containerd_config "$node"
    start "$node" containerd containerd --config "$STATE/$node/containerd.toml"
  done
  for node in "${NODES[@]}"; do wait_for 30 "$node-containerd" loaded "$node"; done
  binary_image localhost/pause:1 "$BIN/pause"
}

containerd_config() { # NODE
  mkdir -p "$STATE/$1/cni"
  cat >"$STATE/$1/cni/10-bridge.conflist" <<CNI
{"cniVersion": "1.0.0", "name": "$CLUSTER", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "${NODE_PODS[$1]}"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CNI
  cat >"$STATE/$1/containerd.toml" <<TOML
version = 2
root = "$STATE/$1/containerd"
state = "/run/containerd"
[grpc]
  address = "$(containerd_socket "$1")"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true   # a machine without CAP_SYS_RESOURCE can't lower it
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$STATE/$1/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML
}

control_plane() {
  local node=${NODES[0]}
  start "$node" etcd etcd --data-dir "$STATE/$node/etcd" --unsafe-no-fsync
  start "$node" kube-apiserver "$BIN/kube-node" kube-apiserver --etcd-servers http://127.0.0.1:2379 --advertise-address "${NODE_IP[$node]}" \
    --service-cluster-ip-range "$SERVICES" --allow-privileged --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --client-ca-file "$PKI/ca.crt" --tls-cert-file "$PKI/apiserver.crt" --tls-private-key-file "$PKI/apiserver.key" \
    --kubelet-client-certificate "$PKI/admin.crt" --kubelet-client-key "$PKI/admin.key" --kubelet-certificate-authority "$PKI/ca.crt" \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc.cluster.local --service-account-key-file "$PKI/service-account.pub" \
    --service-account-signing-key-file "$PKI/service-account.key" \
    --requestheader-client-ca-file "$PKI/ca.crt" --requestheader-allowed-names front-proxy-client --requestheader-username-headers X-Remote-User \
    --requestheader-group-headers X-Remote-Group --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$PKI/front-proxy.crt" --proxy-client-key-file "$PKI/front-proxy.key" --enable-aggregator-routing
  wait_for 120 "$node-kube-apiserver" kube get --raw /readyz
  start "$node" kube-controller-manager "$BIN/kube-node" kube-controller-manager --kubeconfig "$STATE/controller-manager.kubeconfig" \
    --leader-elect=false --use-service-account-credentials --service-account-private-key-file "$PKI/service-account.key" \
    --root-ca-file "$PKI/ca.crt" --cluster-signing-cert-file "$PKI/ca.crt" --cluster-signing-key-file "$PKI/ca.key"
  start "$node" kube-scheduler "$BIN/kube-node" kube-scheduler --kubeconfig "$STATE/scheduler.kubeconfig" --leader-elect=false
  start "$node" load-balancer "$BIN/kube-node" load-balancer --kubeconfig "$KUBECONFIG_FILE" --pool "$LOAD_BALANCERS"
  kube create clusterrolebinding "$CLUSTER-proxy" --clusterrole=system:node-proxier --user=system:kube-proxy >/dev/null 2>&1 || true # it is there
}

kubelets_up() {
  local node
  for node in "${NODES[@]}"; do
    kubelet_config "$node"
    start "$node" kubelet "$BIN/kube-node" kubelet --config "$STATE/$node/kubelet.yaml" --kubeconfig "$STATE/$node.kubeconfig" \
      --hostname-override "$CLUSTER-$node" --node-ip "${NODE_IP[$node]}"
    start "$node" kube-proxy "$BIN/kube-node" kube-proxy --kubeconfig "$STATE/proxy.kubeconfig" --hostname-override "$CLUSTER-$node" \
      --proxy-mode iptables --cluster-cidr "$PODS" --conntrack-max-per-core 0 --nodeport-addresses primary
    start "$node" network-policy "$BIN/kube-node" network-policy --kubeconfig "$KUBECONFIG_FILE"
  done
  for node in "${NODES[@]}"; do
    wait_for 120 "$node-kubelet" kube wait --for=condition=Ready "node/$CLUSTER-$node" --timeout=1s
  done
  kube label node "$CLUSTER-${NODES[0]}" node-role.kubernetes.io/control-plane= --overwrite >/dev/null # a kubelet may not give it to itself
}

kubelet_config() { # NODE
  : >"$STATE/$1/resolv.conf"
  cat >"$STATE/$1/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$CLUSTER-cluster/$1
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$(containerd_socket "$1")
evictionHard: {}  # the machine's disk and memory are not this cluster's alone
failCgroupV1: false
failSwapOn: false
featureGates: {ImageVolume: true}
imageGCHighThresholdPercent: 100  # an image that is removed could not be pulled again
resolvConf: $STATE/$1/resolv.conf
tlsCertFile: $PKI/$1.crt
tlsPrivateKeyFile: $PKI/$1.key
YAML
}
