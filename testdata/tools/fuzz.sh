#!/usr/bin/env bash
# Fuzzes the parser, the expander and the ignore matcher, one after the other, each for SECONDS_EACH seconds (600 unless told).
# usage: fuzz.sh [TARGET…]. Seeds are made of testdata/; what was found interesting stays in fuzz/corpus, findings in
# fuzz/artifacts, and a log of each run, with the figures at its end, in fuzz/logs.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTC_BOOTSTRAP=1 # libFuzzer's flags are not in the stable compiler's list, but it knows them
seconds=${SECONDS_EACH:-600}
targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || targets=(dockerfile expand ignore)

seed() { # TARGET: writes standard input as one seed
    local file
    file=$(mktemp) && cat > "$file" && mv "$file" "fuzz/seeds/$1/$(sha1sum < "$file" | cut -c1-16)"
}
rm -rf fuzz/seeds
mkdir -p fuzz/seeds/{dockerfile,expand,ignore} fuzz/logs
for file in testdata/{parser,rejected,conformance}/*/Dockerfile testdata/demo/Dockerfile; do
    # One beyond libFuzzer's usual length would only slow it down.
    [[ $(stat -c %s "$file") -gt 4096 ]] || seed dockerfile < "$file"
done
grep -rhF '$' testdata --include=Dockerfile | sort -u | while read -r line; do
    printf '\nfoo/bar.tar\n%s' "$line" | seed expand
    printf 'qek\n a  b \n%s' "${line#* }" | seed expand
done
find testdata -name '*.dockerignore' | while read -r file; do
    (cat "$file" && printf '\n--\n' && cd "$(dirname "$file")" && find . -mindepth 1 -printf '%P\n' | head -50) | seed ignore
done

for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz build -s none "$target"
    log=fuzz/logs/$target
    echo "fuzzing $target for $seconds s, with $(find "fuzz/seeds/$target" -type f | wc -l) seeds"
    if ! cargo fuzz run -s none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -dict=fuzz/dockerfile.dict -print_final_stats=1 \
        > "$log" 2>&1; then
        tail -n 40 "$log" >&2
        exit 1
    fi
    grep -E 'DONE' "$log" | tail -n 1
    echo "corpus: $(find "fuzz/corpus/$target" -type f | wc -l) files"
done
