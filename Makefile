# What developers and CI call. `make` alone tells what there is.

# Where the development stack keeps its images: local (a directory), garage (a real S3 store) or garage-geo (one in three zones).
STORE ?= local

# How long each fuzz target runs.
SECONDS ?= 60

# What compiles fast. The same features for both programs, so that nothing is compiled twice.
STACK = --profile stack --features dev
DEV = cargo run --quiet $(STACK) --bin dev --
BENCH = cargo run --quiet --release --example bench --

# Written by npm when everything is installed.
NODE_MODULES = examples/nextjs/node_modules/.package-lock.json
NODE_PROXY = tests/bench/node-proxy/node_modules/.package-lock.json

.DEFAULT_GOAL = help
.PHONY: help tools tools-up tools-test tools-examples tools-fuzz tools-bench build up down test fuzz \
	conformance examples reference lint advisories docs bench bench-versus bench-limits manifests translated

help: ## this list
	@echo "Afterimage. Needs make, Rust, a C compiler and Python 3 with venv."
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14 | sed 's/^/  make /'

tools: ## installs every real component (Envoy, Garage, imgproxy's stand-in), once per user
	@tests/tools.sh envoy imgproxy garage

build: ## the release binary, target/release/afterimage
	cargo build --release --bin afterimage

up: tools-up ## starts the stack and shows a miss and a hit; STORE=garage for a real S3 store, garage-geo for three zones
	@[ -x "$${CARGO_TARGET_DIR:-target}/stack/afterimage" ] || \
		echo "Building Afterimage, not optimized: about 2 minutes on two cores, seconds from then on."
	cargo build $(STACK) --bin afterimage --bin dev
	@$(DEV) up --store $(STORE)

down: ## ends the stack
	@if ls run/*.pid >/dev/null 2>&1; then $(DEV) down; else echo "nothing is running"; fi

test: tools-test ## the whole test suite, with the real components on free ports
	cargo test

# Coverage without a sanitizer, which stable Rust has: there is no unsafe code to watch. What a run has
# learned is in fuzz/corpus for the next one; a finding is in fuzz/artifacts.
fuzz: tools-fuzz ## fuzzes the readers of what others write, SECONDS=60 for each; needs a C++ compiler
	@set -e; for target in $(notdir $(wildcard fuzz/seeds/*)); do \
		mkdir -p fuzz/corpus/$$target; \
		"$$(tests/tools.sh path cargo-fuzz)" run --sanitizer none --target-dir target/fuzz $$target \
			fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(SECONDS) -max_len=512 -print_final_stats=1; \
	done

conformance: ## the public tests for HTTP caches; CACHE_TESTS=checkout of github.com/http-tests/cache-tests
	@[ -n '$(CACHE_TESTS)' ] || { echo 'conformance: CACHE_TESTS is missing; run: git clone https://github.com/http-tests/cache-tests' \
		'/tmp/cache-tests, then: make conformance CACHE_TESTS=/tmp/cache-tests' >&2; exit 1; }
	@tests/tools.sh envoy node
	cargo build --release --bin afterimage --example conformance
	@cargo run --quiet --release --example conformance -- '$(CACHE_TESTS)'

examples: tools-examples manifests $(NODE_MODULES) ## checks the files for meshes, builds the examples and looks at them in a browser (Debian's chromium)
	cargo test --test examples

%/node_modules/.package-lock.json: %/package.json %/package-lock.json
	@tests/tools.sh node
	cd $* && PATH="$$(dirname "$$($(CURDIR)/tests/tools.sh path node)"):$$PATH" npm ci --no-audit --no-fund --loglevel error

bench: tools-bench $(NODE_PROXY) ## Afterimage beside the floors and the peers, 15 minutes; QUICK=1 for 2
	cargo build --release --bin afterimage --example bench
	@$(BENCH) run $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

bench-versus: tools-bench ## this build beside another one; OTHER=path/to/afterimage
	@[ -n '$(OTHER)' ] || { echo 'bench-versus: OTHER is missing; it is the path of another build of afterimage' >&2; exit 1; }
	cargo build --release --bin afterimage --example bench
	@$(BENCH) versus '$(OTHER)'

bench-limits: tools-bench ## sizes, herds, memory and many objects, within 15 minutes; ONLY=herd for one
	cargo build --release --bin afterimage --example bench
	@$(BENCH) limits $(if $(ONLY),--only $(ONLY))

reference: ## makes docs/configuration.md and its schema anew, out of the types of src/config
	UPDATE=1 cargo test --quiet --lib config::reference

lint: ## format, clippy, documentation of the code, licences and sources of dependencies; warnings denied
	@tests/tools.sh cargo-deny
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --all-targets --all-features -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" cargo doc --no-deps --document-private-items
	"$$(tests/tools.sh path cargo-deny)" --locked check bans licenses sources

advisories: ## known vulnerabilities of dependencies; needs a network, for the list of them
	@tests/tools.sh cargo-deny
	"$$(tests/tools.sh path cargo-deny)" --locked check advisories

docs: ## the book, into target/docs; fails on a broken link
	@tests/tools.sh docs
	@"$$(tests/tools.sh path docs)" docs/links.py
	@"$$(tests/tools.sh path docs)" -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet \
		--doctree-dir target/docs-doctrees docs target/docs
	@"$$(tests/tools.sh path docs)" docs/links.py --built target/docs
	@echo "open target/docs/index.html"

manifests: ## checks the files for Istio, Envoy Gateway, Kubernetes and Helm against published schemas
	@tests/tools.sh go manifests
	@tests/manifests/check.sh

translated: ## makes envoy/*/translated*.yaml anew, with Istio's and Envoy Gateway's own code
	@tests/tools.sh go translators
	@tests/manifests/translate.sh

# imgproxy's stand-in is needed only where there is no imgproxy.
STAND_IN = $(if $(IMGPROXY)$(shell command -v imgproxy),,imgproxy)

tools-bench:
	@tests/tools.sh envoy garage $(STAND_IN)

tools-up:
	@tests/tools.sh envoy $(STAND_IN) $(if $(findstring garage,$(STORE)),garage)

# The stand-in is held against the recordings whatever imgproxy the other tests run with.
tools-test:
	@tests/tools.sh envoy imgproxy garage

tools-examples:
	@tests/tools.sh chromium envoy node $(STAND_IN)

# With the main package's versions, so that what is fuzzed is what is shipped.
tools-fuzz:
	@tests/tools.sh cargo-fuzz
	@cp Cargo.lock fuzz/Cargo.lock
