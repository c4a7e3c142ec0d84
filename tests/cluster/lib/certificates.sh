# shellcheck shell=bash
# Who may speak to whom: one authority, a certificate for each component, and a kubeconfig for each that asks the API server.

certificate() { # NAME SUBJECT [SUBJECT-ALT-NAMES]
  openssl req -newkey rsa:2048 -nodes -keyout "$PKI/$1.key" -subj "$2" -out "$PKI/$1.csr" 2>/dev/null
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 365 \
    -extfile <(printf 'extendedKeyUsage=clientAuth,serverAuth\n%s' "${3:+subjectAltName=$3}") -out "$PKI/$1.crt" 2>/dev/null
}

client() { # FILE CERTIFICATE: a kubeconfig
  local config=(kubectl config --kubeconfig "$1")
  {
    "${config[@]}" set-cluster "$CLUSTER" --server "https://${NODE_IP[control-plane]}:6443" --certificate-authority "$PKI/ca.crt" --embed-certs
    "${config[@]}" set-credentials "$2" --client-certificate "$PKI/$2.crt" --client-key "$PKI/$2.key" --embed-certs
    "${config[@]}" set-context "$CLUSTER" --cluster "$CLUSTER" --user "$2"
    "${config[@]}" use-context "$CLUSTER"
  } >/dev/null
}

certificates() {
  [[ -f $PKI/done ]] && return
  local node user service=kubernetes.default.svc
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$PKI/ca.key" -subj "/CN=$CLUSTER-ca" -days 365 -out "$PKI/ca.crt" 2>/dev/null
  openssl genrsa -out "$PKI/service-account.key" 2048 2>/dev/null
  openssl rsa -in "$PKI/service-account.key" -pubout -out "$PKI/service-account.pub" 2>/dev/null
  certificate apiserver /CN=kube-apiserver \
    "IP:${NODE_IP[control-plane]},IP:$API_IP,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:$service,DNS:$service.cluster.local"
  certificate admin /O=system:masters/CN=admin
  certificate controller-manager /CN=system:kube-controller-manager
  certificate scheduler /CN=system:kube-scheduler
  certificate proxy /CN=system:kube-proxy
  certificate front-proxy /CN=front-proxy-client
  for node in "${NODES[@]}"; do
    certificate "$node" "/O=system:nodes/CN=system:node:$CLUSTER-$node" "IP:${NODE_IP[$node]},DNS:$CLUSTER-$node"
  done
  for user in controller-manager scheduler proxy "${NODES[@]}"; do client "$STATE/$user.kubeconfig" "$user"; done
  client "$KUBECONFIG_FILE" admin
  touch "$PKI/done"
}
