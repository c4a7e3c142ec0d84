# shellcheck shell=bash
# Images come from buildah's store on this machine: no registry is asked for anything but the Python base image.

PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm

containerd_images() { # NODE ARGUMENTS...
  local socket; socket=$(containerd_socket "$1"); shift
  ctr --address "$socket" --namespace k8s.io images "$@"
}

loaded() { containerd_images "$1" ls --quiet; } # NODE

images() { # only what is on each node
  local node list=''
  for node in "${NODES[@]}"; do
    node_id "$node" >/dev/null
    list+=$(loaded "$node" | grep -v '^sha256:' | sort -u)$'\n'
  done
  sort <<<"$list" | uniq -c | awk -v nodes="${#NODES[@]}" '$1 == nodes && NF == 2 { print $2 }'
}

load() { # IMAGE...
  needs_root
  local image names name archive=$WORK/image.tar
  mkdir -p "$WORK"
  for image in "$@"; do
    names=$(buildah images --format '{{.Name}}:{{.Tag}}' "$image" 2>/dev/null) ||
      die "buildah's store has no image $image; build it with: cluster build -t $image ..."
    name=$image # of an image that has several names; else its only one, for an id or a short name
    has "$image" <<<"$names" || name=${names%%$'\n'*}
    buildah push -q "$image" "docker-archive:$archive:$name"
    import "$archive"
  done
}

tag() { # IMAGE NEW: no bytes are moved, however large the image is
  needs_root
  local node
  for node in "${NODES[@]}"; do
    containerd_images "$node" tag --force "$1" "$2" >/dev/null || die "$node has no image $1; what is loaded: cluster images"
  done
}

import() { # ARCHIVE: on all nodes at once
  local node jobs=() job failed=0
  for node in "${NODES[@]}"; do
    containerd_images "$node" import "$1" >/dev/null &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  rm -f "$1"
  (( ! failed )) || die "an image could not be loaded; is the disk full? More with: cluster logs ${NODES[0]}-containerd"
}

binary_image() { # TAG BINARY [BASE]: an image that holds one program, on each node
  has "$1" < <(images) && return
  local container archive=$WORK/image.tar
  mkdir -p "$WORK"
  container=$(buildah from --pull-never "${3:-scratch}")
  buildah copy -q "$container" "$2" "/$(basename "$2")" >/dev/null
  buildah config --cmd "" --entrypoint "[\"/$(basename "$2")\"]" "$container"
  buildah commit -q --rm "$container" "docker-archive:$archive:$1" >/dev/null
  import "$archive"
}

build() { # buildah's own arguments; steps have this machine's network, and pip trusts its certificates
  needs_root
  mkdir -p "$LOGS"
  base
  buildah build --pull=false --network host --isolation chroot "$@"
}

base() { # the Python base image; where no registry is reached a stand-in is made: Debian bookworm with this machine's CPython 3.13
  buildah inspect --type image "$PYTHON_IMAGE" >/dev/null 2>&1 && return
  timeout 300 buildah pull -q "$PYTHON_IMAGE" >/dev/null 2>"$LOGS/pull.log" && return
  say "no registry gives $PYTHON_IMAGE ($LOGS/pull.log): making a stand-in"
  local root=$WORK/root prefix container
  prefix=$(own_python) || die "the stand-in needs CPython 3.13 in a folder of its own, such as pyenv's: pyenv install 3.13"
  mkdir -p "$root"
  debootstrap --variant=minbase \
    --include=ca-certificates,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,libuuid1,libexpat1,zlib1g,netbase,tzdata \
    bookworm "$root" >"$LOGS/debootstrap.log" 2>&1 || die "debootstrap could not get Debian bookworm; its messages are in $LOGS/debootstrap.log"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  tar -C "$prefix" --exclude='__pycache__' --exclude='*.a' --exclude='lib/python3.13/test' --exclude='lib/python3.13/config-3.13-*' \
    --exclude='lib/python3.13/site-packages/*.pth' -cf - . | tar -C "$root/usr/local" -xf -
  sed -i '1s|.*|#!/usr/local/bin/python3.13|' "$root"/usr/local/bin/pip3 "$root"/usr/local/bin/pip3.13
  chroot "$root" ldconfig
  chroot "$root" /usr/local/bin/python3.13 -c 'import bz2, ctypes, lzma, sqlite3, ssl, zlib' ||
    die "CPython of $prefix does not run on Debian bookworm: it needs one that is linked with bookworm's libraries"
  container=$(buildah from scratch)
  buildah copy -q "$container" "$root" / >/dev/null
  buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --env LANG=C.UTF-8 \
    --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt --cmd python3 "$container"
  buildah commit -q --rm "$container" "$PYTHON_IMAGE" >/dev/null
  rm -rf "$root"
}

own_python() { # the folder of a CPython 3.13 that shares it with nothing else: pyenv's newest, or that of the PATH
  local python prefix
  for python in $(printf '%s\n' "$HOME"/.pyenv/versions/3.13.*/bin/python3.13 | sort -rV) python3.13; do
    prefix=$("$python" -c 'import sys; print(sys.base_prefix)' 2>/dev/null) || continue
    [[ $prefix != /usr ]] && echo "$prefix" && return
  done
  return 1
}
