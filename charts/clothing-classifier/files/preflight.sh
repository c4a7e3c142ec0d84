# Checks the model, without which the model server would wait for ever, and logs the problem in a sentence. It runs in the server's own image: POSIX sh and
# coreutils. Usage: preflight.sh MODELS NAME [VERSION…]; without a version the newest is checked, as the server loads it.
base=$1/$2 models=$1
shift 2
fail() { echo "The model can't be served: $*" >&2; exit 1; }
list() { (cd "$1" 2>/dev/null && set -- * && [ -e "$1" ] && echo "$*") || echo nothing; }
readable() { [ -r "$1" ] || fail "user $(id -u) can't read $1: give it to group $(id -g), or make it readable for all"; }
[ -d "$base" ] || fail "there is no folder $base, and $models has: $(list "$models"). Set model.name to the folder's name, or put the model there"
readable "$base"
[ ! -e "$base/saved_model.pb" ] || fail "$base is a version itself: move its files into a folder with a number, $base/1"
[ $# -gt 0 ] || set -- $(list "$base" | tr ' ' '\n' | grep -x '[0-9]*' | sort -n | tail -n 1)
[ $# -gt 0 ] || fail "$base has no version folder, whose name is a number (1, 2, 20261122); it has: $(list "$base")"
for folder; do folder=$base/$folder
  [ -e "$folder/saved_model.pb" ] || fail "there is no $folder/saved_model.pb; $base has: $(list "$base"); $folder has: $(list "$folder")"
  for file in "$folder/saved_model.pb" "$folder"/variables/*; do
    [ -e "$file" ] || { [ -d "$folder/variables" ] && fail "$folder/variables is empty: copy its content as well"; break; }
    readable "$file"
    [ -s "$file" ] || fail "$file is empty: the copy was cut short, make it again"
    ! head -c 40 "$file" | grep -q '^version https://git-lfs' || fail "$file is a Git LFS pointer, not the weights: run git lfs pull, and copy again"
  done
  case $(list "$folder/variables") in nothing | *variables.data-*variables.index*) ;; *) fail "$folder/variables lacks variables.index or variables.data-…; it has: $(list "$folder/variables")" ;; esac
  echo "$folder is there"
done
