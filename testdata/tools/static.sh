#!/usr/bin/env bash
# Builds the one static binary that people download, and runs it where there is nothing else. Prints its path last.
set -euo pipefail
cd "$(dirname "$0")/../.."

machine=$(uname -m)
musl=$machine-unknown-linux-musl
if rustup target list --installed 2> /dev/null | grep -qx "$musl" || timeout 120 rustup target add "$musl" > /dev/null 2>&1; then
    echo "static build: musl target ($musl)"
    testdata/tools/setup.sh static
    target=$musl
    export "CC_${musl//-/_}=musl-gcc"
else
    target=$machine-unknown-linux-gnu
    echo "static build: rustup cannot add $musl here, so glibc with +crt-static ($target)"
    export RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static"
fi
cargo build --release --target "$target" --bin kiln
binary=${CARGO_TARGET_DIR:-target}/$target/release/kiln

if ldd "$binary" 2> /dev/null | grep -q '=>'; then
    echo "the binary needs shared libraries:" >&2
    ldd "$binary" >&2
    exit 1
fi
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cp "$binary" "$empty/kiln"
as_root() { if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo "$@"; fi; }
as_root chroot "$empty" /kiln version
echo "runs in an empty chroot; $(stat -c %s "$binary") bytes"
echo "$binary"
