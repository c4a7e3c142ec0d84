# shellcheck shell=bash
# What all parts use: messages, waiting, kubectl.

say() { printf 'cluster: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
kube() { kubectl --kubeconfig "$KUBECONFIG_FILE" "$@"; }

step() { # WHAT FUNCTION: run it, and say how long it took
  local started=$SECONDS
  "$2"
  say "$1: $((SECONDS - started)) s"
}

needs_root() {
  [[ $(uname -s) == Linux ]] || die "needs Linux: it makes namespaces and cgroups. Elsewhere use Kind (make kind)."
  [[ $(id -u) == 0 ]] || die "needs root: it makes namespaces, mounts and cgroups. Run it with sudo."
}

wait_for() { # SECONDS LOG COMMAND...
  local limit=$1 log=$2; shift 2
  local end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    (( SECONDS < end )) || { tail -n 5 "$LOGS/$log.log" >&2 || true; die "$log: not ready after $limit s; more with: cluster logs $log"; }
    sleep 0.3
  done
}

has() { # LINE: is it one of the lines that come in?
  grep -Fx -- "$1" >/dev/null # reads to the end: the writer must not meet a closed pipe
}
