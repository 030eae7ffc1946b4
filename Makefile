# Everything a developer types. `make help` explains itself; CI calls the same targets.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
SCRIPTS := setup.sh docker/host.sh www/make-video.sh apache2/httpd scripts/prerequisites.sh
SOURCES := $(shell git ls-files pyproject.toml Cargo.toml Cargo.lock rust python scripts 2>/dev/null)

# Tests side by side. Those in namespaces wait, too: two at a time leave a fifth of two cores unused, and with four some
# that have a deadline miss it.
# Without root a process of tests moves into a user namespace of its own, which one with threads may not: one at a time.
AT_ONCE := --dist worksteal --benchmark-disable -n
NETNS_AT_ONCE := $(if $(filter 0,$(shell id -u)),$(AT_ONCE) 3)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: prerequisites
prerequisites: ## Check for Python, Rust and a linker; install what is missing when that is allowed
	@scripts/prerequisites.sh

# The tests run against the package as a user installs it, never against the source folder.
$(VENV)/.installed: $(SOURCES)
	@scripts/prerequisites.sh
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Without make's own settings: cargo would look for its job server.
	env -u MAKEFLAGS -u MFLAGS $(BIN)/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	@touch $@

.PHONY: env
env: $(VENV)/.installed ## Make the environment in .venv and install the package into it

.PHONY: test
test: prerequisites ## Run all tests: Rust, Python without root, real hosts in namespaces and containers
	@# The image, which mostly waits for packages and compiles on one core, beside Rust's tests and the units. The hosts in
	@# containers and in namespaces have the machine.
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target image test-rust test-unit
	$(MAKE) --no-print-directory test-docker test-netns

.PHONY: test-quick
test-quick: ## Run the tests that need neither root nor a network, Rust and Python
	$(MAKE) --no-print-directory test-rust test-unit

.PHONY: test-rust
test-rust: ## Run the tests of the Rust crates
	@# The benches have none, and criterion with thirty crates more to compile; `make lint` checks them.
	env -u MAKEFLAGS -u MFLAGS cargo test --locked --workspace --exclude flowlb-benches --quiet
	@# Once more the flow table, as a version has it that reads what this one leaves.
	env -u MAKEFLAGS -u MFLAGS cargo test --locked --package flowlb-core --features next-layout --quiet --lib flow::table

.PHONY: test-unit
test-unit: env ## Run the tests that need neither root nor a network: vectors, differential, units
	$(BIN)/python -m pytest tests/unit $(AT_ONCE) 2

.PHONY: test-netns
test-netns: env ## Run the tests on real hosts in network namespaces: three at a time, then those that want to be alone
	$(BIN)/python -m pytest tests/netns -m "not alone" $(NETNS_AT_ONCE)
	$(BIN)/python -m pytest tests/netns -m alone

# Without an engine, or the right to use it, there is no image: `test-docker` says so.
.PHONY: image
image: ## Build the image of the Docker testbed, where there is an engine
	@if ! docker image inspect debian:trixie-slim >/dev/null 2>&1 && command -v mmdebstrap >/dev/null; then \
		from=--base-from-packages; fi; ./setup.sh build $${from:-} || true

.PHONY: test-docker
test-docker: env ## Run the tests of the Docker testbed: one build of the image, nine containers
	$(BIN)/python -m pytest tests/docker

.PHONY: format
format: env ## Format Python and Rust
	$(BIN)/ruff format python tests benches examples loadgen scripts docker
	$(BIN)/ruff check --fix python tests benches examples loadgen scripts docker
	cargo fmt

.PHONY: lint
lint: env ## Check formatting, style and types of Python and Rust
	$(BIN)/ruff format --check python tests benches examples loadgen scripts docker
	$(BIN)/ruff check python tests benches examples loadgen scripts docker
	$(BIN)/mypy
	cargo fmt --check
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); else echo "shellcheck is not installed: scripts are not checked"; fi
	cargo clippy --locked --workspace --all-targets --quiet -- -D warnings

.PHONY: stubtest
stubtest: env ## Compare the stub of lb._core with the built module
	$(BIN)/python -m mypy.stubtest lb._core

.PHONY: all
all: format lint stubtest test ## Format, lint, stubtest, test

.PHONY: differential
differential: env ## Feed 10^6 packets to both backends and compare byte for byte (SEED=1, PACKETS=1000000)
	$(BIN)/python tests/differential.py --packets $(or $(PACKETS),1000000) --seed $(or $(SEED),1)

# Nightly Rust with rust-src, `cargo install cargo-fuzz`, and a C++ compiler for libFuzzer. What a target finds is in
# rust/fuzz/artifacts, and goes to rust/fuzz/regressions once it is understood.
.PHONY: fuzz
fuzz: env ## Fuzz the data path, configurations and requests (SECONDS=60 each, SANITIZER=none or address)
	$(BIN)/python rust/fuzz/seeds.py
	cd rust/fuzz && for target in $$(cargo +nightly fuzz list --fuzz-dir .); do \
		cargo +nightly fuzz run --fuzz-dir . --sanitizer $(or $(SANITIZER),none) $$target -- \
			-max_total_time=$(or $(SECONDS),60) -max_len=2048 -timeout=10 || exit 1; done
	FLOWLB_FUZZ_S=$(or $(SECONDS),60) $(BIN)/python -m pytest tests/unit/test_fuzz_*.py --timeout 0 -s

HOST = $(shell rustc -vV | sed -n 's/^host: //p')
SANITIZED = cargo +nightly test --locked -Zbuild-std --target $(HOST) -p flowlb-core --target-dir target

.PHONY: sanitize
sanitize: ## Run the packet loop with ThreadSanitizer, the rest of the core with AddressSanitizer (nightly, rust-src)
	RUSTFLAGS=-Zsanitizer=thread $(SANITIZED)/thread --test control_calls
	RUSTFLAGS=-Zsanitizer=thread $(SANITIZED)/thread --lib io::
	RUSTFLAGS=-Zsanitizer=address $(SANITIZED)/address --lib --test fuzz

# Without its model of weak memory, which cannot follow a number that is written in parts after it was written whole.
# Left out: what maps files and maps of the kernel, which it cannot, and what draws, for want of time.
.PHONY: miri
miri: ## Run the flow table and the cells that it is made of in Miri (nightly, miri)
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-disable-weak-memory-emulation" \
		cargo +nightly miri test --locked -p flowlb-core --lib -- sys::cells sys::lanes flow::table \
		--skip any_ --skip damaged

.PHONY: soak-control
soak-control: env ## Keep 2 000 flows open through 1 000 reloads and as many commands, on both backends, in namespaces
	$(BIN)/python tests/netns/churn.py --flows $(or $(FLOWS),2000) --rounds $(or $(ROUNDS),1000)

.PHONY: soak-restarts
soak-restarts: env ## Keep 2 000 flows open over 100 take-overs, stops and kills of the balancer, in namespaces
	$(BIN)/python tests/netns/restarts.py --flows $(or $(FLOWS),2000) --rounds $(or $(ROUNDS),100)

.PHONY: soak-layout
soak-layout: env ## Have a build whose flow table has another layout take over 2 000 flows, in namespaces, as root
	$(BIN)/python tests/netns/layouts.py

.PHONY: soak-ready
soak-ready: env ## Time starts of a balancer with a million flows in its table, in namespaces, as root
	$(BIN)/python tests/netns/ready.py

.PHONY: soak-floods
soak-floods: env ## Keep 200 flows open through floods of each kind from random sources, in namespaces (RATE=300000)
	$(BIN)/python tests/netns/floods.py --rate $(or $(RATE),300000)

.PHONY: soak
soak: env ## Keep a balancer under mixed load, in namespaces, as root: memory, descriptors, flows (MINUTES=10)
	$(BIN)/python tests/soak.py --minutes $(or $(MINUTES),10)

.PHONY: vectors
vectors: env ## Rebuild tests/vectors/*.json with scapy
	$(BIN)/python tests/vectors/build.py

.PHONY: docs
docs: env ## Write docs/configuration.md from the keys that the code declares
	$(BIN)/python -m lb.config.reference docs/configuration.md

.PHONY: bench
bench: env ## Run the benches (never in parallel), keep their figures; then measure this machine in namespaces
	@mkdir -p .benchmarks
	$(BIN)/python -m pytest -p no:xdist benches --benchmark-columns=min,median,iqr,rounds --benchmark-json=.benchmarks/raw.json
	$(BIN)/python benches/report.py keep .benchmarks/raw.json
	$(BIN)/python benches/ratio.py
	$(BIN)/lb bench

.PHONY: bench-report
bench-report: ## Write the kept figures into docs/performance.md and docs/benches.svg
	$(PYTHON) benches/report.py write

.PHONY: bench-core
bench-core: ## Run the criterion benches of every stage of rust/core, one core (never in parallel)
	cargo bench --locked -p flowlb-benches

.PHONY: bench-memory
bench-memory: ## Compare kinds of memory of the flow table at 1 and 10 million flows, in turns, as root (ROUNDS=5)
	$(PYTHON) benches/table_memory.py --rounds $(or $(ROUNDS),5)

.PHONY: map
map: ## Draw who imports whom, from the code: docs/map-python.svg, docs/map-rust.svg (graphviz)
	$(PYTHON) scripts/import_map.py

.PHONY: www
www: ## Make the website with its video in build/www (ffmpeg)
	@mkdir -p build
	rm -rf build/www
	cp -r www/. build/www
	rm build/www/make-video.sh
	www/make-video.sh build/www/vod

.PHONY: clean
clean: ## Remove what the other targets made
	rm -rf $(VENV) target build .hypothesis .benchmarks
