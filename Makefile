# The two commands to begin with are `make demo` and `make test`; each installs what it needs (Debian or Ubuntu, with
# Rust there; as root or with sudo).

.PHONY: demo test bench static lint clean-test

# From a Dockerfile to a pushed image, with a real registry on loopback.
demo:
	testdata/tools/setup.sh demo
	cargo build --release --bin kiln
	testdata/tools/demo.sh $${CARGO_TARGET_DIR:-target}/release/kiln

# All tests, with real registries, a real kernel and other people's tools. ARGS go to cargo test.
test:
	testdata/tools/setup.sh test
	testdata/tools/run-tests.sh $(ARGS)

# kiln against the BuildKit of Debian's docker.io, paired and interleaved.
bench:
	testdata/tools/setup.sh bench
	cargo build --release --bin kiln
	testdata/tools/bench.py $${CARGO_TARGET_DIR:-target}/release/kiln $(ARGS)

# The one static binary, tried in an empty chroot.
static:
	testdata/tools/static.sh

lint:
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings

# Forgets the base images and contexts that tests keep between runs.
clean-test:
	rm -rf "$${KILN_TEST_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/kiln-test}"
