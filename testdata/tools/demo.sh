#!/usr/bin/env bash
# From a Dockerfile to a pushed image, with everything real and on loopback. `make demo` runs it; it leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
kiln_bin=$(realpath "${1:?the kiln program}")

work=$(mktemp -d "${TMPDIR:-/tmp}/kiln-demo-XXXXXX")
root=()
[[ $(id -u) -eq 0 ]] || root=(sudo --preserve-env=HOME,KILN_ROOT,KILN_CONFIG)
cleanup() {
    status=$?
    exec 9>&- || true # the registry serves until its standard input ends
    [[ -z ${registry:-} ]] || wait "$registry" 2> /dev/null || true
    "${root[@]}" rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() {
    printf '\033[2m$ %s\033[0m\n' "kiln $*"
    "${root[@]}" "$kiln_bin" "$@"
}

say "A loopback registry with a fresh Debian base (the first run makes the base; later runs find it in the cache)"
mkfifo "$work/hold"
python3 testdata/tools/lab.py registry "$work/registry" --seed debian < "$work/hold" > "$work/facts" &
registry=$!
exec 9> "$work/hold"
until [[ -s $work/facts ]]; do
    kill -0 "$registry" 2> /dev/null || { echo "the registry did not start" >&2; exit 1; }
    sleep 0.1
done
host=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["host"])' "$work/facts")
echo "registry at $host"

# Nothing of the person's own store and configuration is touched.
export HOME=$work KILN_ROOT=$work/store KILN_CONFIG=$work/kiln.toml
cat > "$KILN_CONFIG" << END
# FROM debian:bookworm is docker.io/library/debian:bookworm, served from here:
[registry."docker.io"]
mirrors = ["$host"]
END
image=$host/demo/web:1

say "Build: Debian, apt-get install python3, a small web application in two stages"
run build -t "$image" testdata/demo

say "Push it, and pull it back into an empty store"
run push "$image"
run --root "$work/second-store" pull "$image"
run --root "$work/second-store" images

say "What the first store holds now"
run images
run history "$image"

say "The same build again"
before=$(date +%s%N)
run build -t "$image" testdata/demo
after=$(date +%s%N)
printf '\n\033[1mBuilt again in %d ms, all from the cache.\033[0m\n' $(((after - before) / 1000000))
