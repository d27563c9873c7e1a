#!/usr/bin/env bash
# All tests, then each skipped one with its reason and one closing line. Arguments go to `cargo test`.
set -uo pipefail
cd "$(dirname "$0")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export KILN_TEST_SKIPS=$scratch/skips
: > "$KILN_TEST_SKIPS"

if [[ $(id -u) -ne 0 ]]; then
    # The sandbox, the overlay and dockerd need root. Only the test programs run as root; cargo and what it writes don't.
    target=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${target}_RUNNER=sudo --preserve-env"
fi
# Made before the clock of any test runs: a minute the first time, nothing later.
python3 testdata/tools/lab.py bases || exit 1

# Tests send SIGHUP, which whatever started this may have had ignored, as nohup does.
cleared=()
env --default-signal=HUP true 2> /dev/null && cleared=(env --default-signal=HUP)
"${cleared[@]}" cargo test --workspace --no-fail-fast "$@" 2>&1 | tee "$scratch/log"
status=${PIPESTATUS[0]}

count() { grep -E '^test result: ' "$scratch/log" | grep -oE "[0-9]+ $1" | awk '{ sum += $1 } END { print sum + 0 }'; }
skipped=$(sort -u "$KILN_TEST_SKIPS" | grep -c . || true)
echo
sort -u "$KILN_TEST_SKIPS" | sed 's/^/skipped: /'
# A test that skips itself counts as passed for cargo.
echo "$(($(count passed) - skipped)) passed, $(count failed) failed, $skipped skipped"
exit "$status"
