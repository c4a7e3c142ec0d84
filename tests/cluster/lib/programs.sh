# shellcheck shell=bash
# What the cluster is made of: the system's packages, and Go programs at the versions that the go.mod files pin.

packages() {
  local wanted=(containerd:containerd runc:runc etcd:etcd-server iptables:iptables ipset:ipset conntrack:conntrack ip:iproute2
                nsenter:util-linux buildah:buildah debootstrap:debootstrap openssl:openssl jq:jq) missing=() pair
  for pair in "${wanted[@]}"; do command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}"); done
  [[ -x /usr/lib/cni/bridge ]] || missing+=(containernetworking-plugins)
  command -v kubectl >/dev/null || die "there is no kubectl on the PATH: install it (https://kubernetes.io/docs/tasks/tools/)"
  (( ${#missing[@]} )) || return 0
  command -v apt-get >/dev/null || die "install ${missing[*]}: these are Debian's names of the packages, and there is no apt-get to do it"
  say "installing ${missing[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$LOGS/apt.log" 2>&1 ||
    { tail -n 5 "$LOGS/apt.log" >&2; die "apt-get could not install ${missing[*]}; its messages are in $LOGS/apt.log"; }
}

programs() {
  local version flags
  find_go
  version=$(module_version "$here/kube-node" k8s.io/kubernetes)
  flags="-X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1"
  flags+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$version")"
  program kube-node "$here/kube-node" . "$flags"
  CGO_ENABLED=0 program pause "$here/kube-node" ./pause
  CGO_ENABLED=0 program coredns "$here/addons/coredns" github.com/coredns/coredns
  CGO_ENABLED=0 program metrics-server "$here/addons/metrics-server" sigs.k8s.io/metrics-server/cmd/metrics-server
}

find_go() { # the newest that a go.mod here asks for
  [[ -n ${GO:-} ]] && return
  GO=$("$here/../../ci/find-go" "$(sed -n 's/^go //p' "$here"/kube-node/go.mod "$here"/addons/*/go.mod | sort -V | tail -n 1)")
}

module_version() { # FOLDER MODULE
  "$GO" list -C "$1" -m -f '{{.Version}}' "$2"
}

module_folder() { # FOLDER MODULE: where its source lies, fetched if need be
  "$GO" mod download -C "$1" "$2" && "$GO" list -C "$1" -m -f '{{.Dir}}' "$2"
}

program() { # NAME FOLDER PACKAGE [LINKER-FLAGS]: built again only when its sources or pins have changed
  local stamp
  stamp=$(find "$2" \( -name '*.go' -o -name 'go.*' \) -print0 | sort -z | xargs -0 cat | cksum)
  [[ -x $BIN/$1 && -f $BIN/$1.sum && $(<"$BIN/$1.sum") == "$stamp" ]] && return
  say "building $1"
  "$GO" build -C "$2" -trimpath -ldflags "-s -w ${4:-}" -o "$BIN/$1" "$3" || die "$1 did not build; its versions are pinned in $2/go.mod"
  printf '%s\n' "$stamp" >"$BIN/$1.sum"
}
