# The two commands to begin with are `make demo` and `make test`; each installs what it needs (Debian or Ubuntu, with
# Rust there; as root or with sudo).

.PHONY: torture readers demo test record bench bench-push bench-step static fuzz lint clean-test

# From a Dockerfile to a pushed image, with a real registry on loopback.
demo:
	testdata/tools/setup.sh demo
	cargo build --release --bin kiln
	testdata/tools/demo.sh $${CARGO_TARGET_DIR:-target}/release/kiln

# All tests, with real registries, a real kernel and other people's tools. ARGS go to cargo test.
test:
	testdata/tools/setup.sh test
	testdata/tools/run-tests.sh $(ARGS)

# A push and a pull of a gigabyte over a line that breaks twenty times; `make test` does the same with 50 MB.
cuts:
	testdata/tools/setup.sh test
	KILN_TEST_CUT_MB=1000 cargo test -p kiln-registry-client --test it -- --exact resume::twenty_cuts_cost_a_tenth --nocapture

# The long forms of the tests of threats and faults: 200 kills of a build that pulls, 10,000 swaps for each race, 500 power cuts,
# five minutes of prune beside four builders.
torture:
	testdata/tools/setup.sh test
	KILN_TEST_FULL=1 cargo test -p kiln-runner --test sandbox c
	KILN_TEST_CORRUPTIONS=1000 cargo test -p kiln --test it -- fsck --nocapture
	KILN_TEST_KILLS=200 KILN_TEST_FULL=1 cargo test -p kiln --test it -- interrupted threats --nocapture
	KILN_TEST_EDITS=100 cargo test -p kiln --test it -- edits --nocapture
	KILN_TEST_FAULTS="5000 3000" KILN_TEST_BIN="$$(testdata/tools/static.sh | tail -n 1)" cargo test -p kiln --test it -- faults --nocapture
	KILN_TEST_CUTS=400 KILN_TEST_RACE_SECONDS=300 cargo test -p kiln --test it -- power:: races:: --nocapture

# All images of testdata/conformance, read by skopeo, umoci, podman and dockerd of Debian stable and sid, in each form.
readers:
	testdata/tools/setup.sh test
	KILN_TEST_FULL=1 cargo test -p kiln --test it -- readers writers handover --nocapture

# Writes what the conformance cases expect, from a newer BuildKit (Debian sid's docker.io). CASE is a part of their names.
record:
	testdata/tools/setup.sh test
	KILN_CASE="$(CASE)" cargo test -p kiln --test it -- --ignored --exact conformance::record

# kiln against docker.io's BuildKit, buildah and podman, and against itself with ten times the work: an hour or two, on a quiet
# machine. Without ARGS it writes BENCHMARKS.md; a short form: ARGS='--part works --only "RUN steps" --peers buildkit --rounds 1'.
bench:
	testdata/tools/setup.sh bench
	testdata/tools/bench.py "$$(testdata/tools/static.sh | tail -n 1)" $(if $(ARGS),$(ARGS),--write BENCHMARKS.md)

# kiln push against docker push and buildah push: 800 MB in 8 layers, gzip, a registry on loopback. On a quiet machine.
bench-push:
	testdata/tools/setup.sh bench
	cargo build --release --bin kiln
	testdata/tools/push.py $${CARGO_TARGET_DIR:-target}/release/kiln --require 4 1.5 $(ARGS)

# What one RUN step costs besides its command, as root and as an ordinary user, beside `runc run`. On a quiet machine.
bench-step:
	testdata/tools/setup.sh test
	testdata/tools/step.py "$$(testdata/tools/static.sh | tail -n 1)" $(ARGS)

# The one static binary, tried in an empty chroot.
static:
	testdata/tools/static.sh

# Random Dockerfiles, words and ignore files, SECONDS_EACH (600) seconds of each; ARGS names targets of fuzz/.
fuzz:
	testdata/tools/setup.sh fuzz
	testdata/tools/fuzz.sh $(ARGS)

lint:
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml --no-default-features -- -D warnings

# Forgets the base images and contexts that tests keep between runs.
clean-test:
	rm -rf "$${KILN_TEST_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/kiln-test}"

# A part of `make torture`: every hostile archive in every mode, and 10,000 generated ones beside what other readers say of them.
.PHONY: torture-archives
torture: torture-archives
torture-archives:
	KILN_TEST_FULL=1 cargo test -p kiln --test it -- hostile --nocapture
	KILN_TEST_TARS=10000 cargo test -p kiln-store --lib tar::tests::differential -- --nocapture
