# One target a habit. Each that runs something makes the virtual environment that it needs, and keeps it for the next time.

PYTHON ?= python3
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
SOURCES := Cargo.toml Cargo.lock pyproject.toml examples/rag_app/pyproject.toml $(shell find src python -name '*.rs' -o -name '*.py' -o -name '*.pyi')
# More workers than CI has cores, because tests often wait. The tests that are left at the end are shared out.
WORKERS ?= 4
PYTEST_AT_ONCE := -m pytest -n $(WORKERS) --dist worksteal
CARGO_TEST := cargo test --locked --no-default-features
# The state machines, with schedules that a program chooses.
CARGO_EXPLORE := $(CARGO_TEST) --features explore explored

UV := .venv/uv/bin/uv
INSTALL := $(UV) pip install --quiet --compile-bytecode

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help demo app test test-long test-browser load explore test-others test-chromadb lint format bench bench-growth bench-report bench-compare \
    bench-rust bench-checkpoints storm soak torture powercut compare chroma-suite stores other-systems clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 19

demo: .venv/demo-$(VERSION)/ready ## build it and run the main job
	@.venv/demo-$(VERSION)/bin/chroma-manager demo $(ARGS)

app: .venv/app-$(VERSION)/ready ## build it and run the example app (ARGS="--port 8001 --workers 4")
	@.venv/app-$(VERSION)/bin/python -m uvicorn rag_app.main:app $(ARGS)

test: .venv/test-$(VERSION)/ready ## build it and run the tests, Rust and Python, but the longest
	$(CARGO_TEST)
	$(CARGO_EXPLORE)
	.venv/test-$(VERSION)/bin/python $(PYTEST_AT_ONCE) -m "not long" $(ARGS)

test-long: .venv/test-$(VERSION)/ready ## the Python tests that it leaves out, for ten minutes
	.venv/test-$(VERSION)/bin/python $(PYTEST_AT_ONCE) -m long $(ARGS)

explore: ## other schedules of the state machines than the tests try, for some minutes
	SHUTTLE_RANDOM_SEED=$$(date +%s) EXPLORE_ITERATIONS=5000 $(CARGO_EXPLORE)

# What they leave out depends on no Python, and takes minutes; what is left has a test of each part of it.
OTHERS_LEAVE_OUT := $(foreach folder,app bucket demo durability house migration operations server,--ignore tests/$(folder)) \
    --ignore tests/api/test_fastapi.py \
    --ignore tests/compatibility/test_eras.py $(foreach name,addresses bounds directories engine_deaths hangs inheritance \
    interpreter interrupts isolated large_values,--ignore tests/engine/test_$(name).py)

test-others: ## the Python tests, but the longest, with each other Python from 3.10 to 3.13 that is here
	@for python in $$(.ci/pythons $(VERSION)); do \
	    echo "--- $$python"; STORM_SECONDS=4 COMPATIBILITY_EXAMPLES=15 $(MAKE) --no-print-directory test-python \
	        PYTHON=$$python ARGS="$(OTHERS_LEAVE_OUT) $(ARGS)" || exit 1; \
	done

# As pyproject.toml says. The newest is what a new environment has; which values a call takes differs between the two, so
# tests/compatibility/test_values.py is left to the newest.
LOWEST_CHROMADB := $(shell sed -nE 's/.*"chromadb>=([0-9.]+),<2".*/\1/p' pyproject.toml)
CHROMADB_TESTS := $(foreach name,api/test_clients api/test_collections api/test_manager compatibility/test_bindings \
    compatibility/test_chroma_table compatibility/test_compatibility engine/test_known_collections,tests/$(name).py)

test-chromadb: .venv/chromadb-lowest-$(VERSION)/ready ## some of the tests with the lowest chromadb that is allowed
	COMPATIBILITY_EXAMPLES=15 .venv/chromadb-lowest-$(VERSION)/bin/python $(PYTEST_AT_ONCE) -m "not long" -q $(CHROMADB_TESTS) $(ARGS)

.PHONY: test-python
test-python: .venv/test-$(VERSION)/ready
	.venv/test-$(VERSION)/bin/python $(PYTEST_AT_ONCE) -m "not long" $(ARGS)

lint: .venv/test-$(VERSION)/linters ## formatting, clippy, ruff, layers, mypy, and the stubs against the module
	cargo fmt --check
	cargo clippy --locked --all-targets --features bench -- -D warnings
	cargo clippy --locked --all-targets --no-default-features --features explore -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --no-deps --document-private-items
	cargo fmt --check --manifest-path benches/torture/faults/Cargo.toml
	cargo clippy --locked --manifest-path benches/torture/faults/Cargo.toml -- -D warnings
	cargo fmt --check --manifest-path benches/criterion/Cargo.toml
	.venv/test-$(VERSION)/bin/ruff check
	.venv/test-$(VERSION)/bin/ruff format --check
	cd python && ../.venv/test-$(VERSION)/bin/lint-imports --no-cache --no-logo ../pyproject.toml
	cd .venv/test-$(VERSION) && bin/mypy --config-file ../../pyproject.toml -p chroma_manager
	cd .venv/test-$(VERSION) && bin/mypy --config-file ../../pyproject.toml -p rag_app
	cd .venv/test-$(VERSION) && bin/stubtest --mypy-config-file ../../pyproject.toml --allowlist ../../tests/stubtest-allowlist.txt chroma_manager._native

format: .venv/test-$(VERSION)/linters ## rewrite what lint would complain about, where a tool can
	cargo fmt
	.venv/test-$(VERSION)/bin/ruff check --fix
	.venv/test-$(VERSION)/bin/ruff format

BENCH = .venv/bench-$(VERSION)/bin/python benches/bench

bench: .venv/bench-$(VERSION)/ready ## measure the README's tables, beside what an app could use instead (ARGS="--long")
	@$(BENCH) run $(ARGS)

bench-growth: .venv/bench-$(VERSION)/ready ## measure how cost grows with threads, databases and records
	@$(BENCH) growth $(ARGS)

bench-report: .venv/bench-$(VERSION)/ready ## write the tables and figures of the last runs into the pages
	@$(BENCH) report $(ARGS)

bench-compare: .venv/bench-$(VERSION)/ready ## what is slower than in the last run (OLD=a.json NEW=b.json)
	@$(BENCH) compare $(if $(OLD),--old $(OLD)) $(if $(NEW),--new $(NEW)) $(ARGS)

# The interpreter is embedded here: it has to find its library, its own modules, and those of the environment.
bench-rust: export PYO3_PYTHON = $(CURDIR)/.venv/bench-$(VERSION)/bin/python
bench-rust: .venv/bench-$(VERSION)/ready ## measure the registry, the frames and the conversions by themselves
	cargo clippy --locked --manifest-path benches/criterion/Cargo.toml --all-targets -- -D warnings
	LD_LIBRARY_PATH=$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))') \
	PYTHONHOME=$$($(PYTHON) -c 'import sys; print(sys.base_prefix)') \
	PYTHONPATH=$$(.venv/bench-$(VERSION)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	    cargo bench --locked --manifest-path benches/criterion/Cargo.toml $(ARGS)

bench-checkpoints: .venv/test-$(VERSION)/ready ## measure what checkpoints cost, for five minutes
	@.venv/test-$(VERSION)/bin/python benches/checkpoints.py

storm: .venv/test-$(VERSION)/ready ## every call from 32 threads, for ten minutes
	STORM_SECONDS=600 .venv/test-$(VERSION)/bin/python -m pytest tests/engine/test_storm.py --timeout 900 -o faulthandler_timeout=890

soak: .venv/test-$(VERSION)/ready ## everything at once with kills and forks, for fifteen minutes (SOAK_SECONDS=900)
	@.venv/test-$(VERSION)/bin/python benches/soak.py

powercut: .venv/test-$(VERSION)/ready ## cut the power after every flush of a logged disk, and compare (root; ARGS="--fs xfs")
	@.venv/test-$(VERSION)/bin/python benches/powercut $(ARGS)

torture: .venv/test-$(VERSION)/ready ## fail or kill every file operation of an engine process, for fifty minutes
	@.venv/test-$(VERSION)/bin/python benches/torture $(ARGS)

compare: .venv/test-$(VERSION)/ready ## new random calls on stock Chroma and on ours, for some minutes
	COMPATIBILITY_RANDOM=1 COMPATIBILITY_EXAMPLES=1000 .venv/test-$(VERSION)/bin/python -m pytest \
	    tests/compatibility/test_compatibility.py -k random --timeout 900 -o faulthandler_timeout=890

chroma-suite: .venv/chroma-suite-$(VERSION)/ready ## Chroma's own tests, over Chroma and over the engine, for ten minutes
	.venv/chroma-suite-$(VERSION)/bin/python tools/chroma_suite.py

# What Playwright would download is not needed: it drives the browser of the system.
test-browser: .venv/browser-$(VERSION)/ready ## the example app's page in Chromium (SCREENSHOTS=1 writes its pictures)
	@test -n "$(CHROMIUM)" || { echo "There is no Chromium here. Install it: apt-get install chromium"; exit 1; }
	CHROMIUM=$(CHROMIUM) .venv/browser-$(VERSION)/bin/python -m pytest -q tests/app/browser.py $(ARGS)

load: .venv/load-$(VERSION)/ready ## uploads and chats at once, beside the same app on stock Chroma, for six minutes
	@.venv/load-$(VERSION)/bin/python benches/load $(ARGS)

stores: .venv/stores-$(VERSION)/ready ## the stores of LangChain, LlamaIndex, mem0 and crewAI over our clients, for five minutes
	.venv/stores-$(VERSION)/bin/python -m pytest -q tests/compatibility/stores.py

OTHER_SYSTEMS := aarch64-apple-darwin x86_64-pc-windows-msvc

other-systems: ## clippy for macOS and Windows; rustup fetches their standard libraries
	rustup target add $(OTHER_SYSTEMS)
	@for target in $(OTHER_SYSTEMS); do \
	    PYO3_NO_PYTHON=1 cargo clippy --locked --target $$target -- -D warnings || exit 1; \
	done

clean: ## remove what the others made
	rm -rf .venv target dist

# It installs in seconds what takes pip minutes.
$(UV):
	$(PYTHON) -m venv .venv/uv
	.venv/uv/bin/python -m pip install --quiet uv

# One wheel, which is for every Python: tests and demo run what a user installs, not the source tree.
dist/ready: $(SOURCES) | $(UV)
	rm -rf dist
	$(UV) build --quiet --python $(PYTHON) --wheel --out-dir dist
	touch $@

.venv/demo-%/ready: EXTRA := [demo]
.venv/test-%/ready: GROUPS := --group test
.venv/test-%/ready: EXTRA := [bucket,demo]
.venv/test-%/ready: ASIDE := fastapi-with-event-handlers
.venv/test-%/ready: APP := -e 'examples/rag_app[azure,gcs]'
.venv/app-%/ready: APP := -e 'examples/rag_app[azure,gcs]'
.venv/browser-%/ready: GROUPS := --group browser
.venv/browser-%/ready: APP := -e examples/rag_app
.venv/load-%/ready: GROUPS := --group load
.venv/load-%/ready: APP := -e examples/rag_app
.venv/stores-%/ready: GROUPS := --group stores
.venv/bench-%/ready: GROUPS := --group bench
.venv/bench-%/ready: EXTRA := [demo]
.venv/chromadb-lowest-%/ready: GROUPS := --group test 'chromadb==$(LOWEST_CHROMADB)'
.venv/chromadb-lowest-%/ready: EXTRA := [bucket,demo]
.venv/chroma-suite-%/ready: GROUPS := --group chroma-suite
.venv/%/ready: dist/ready
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@# The wheel of before has the same version.
	$(INSTALL) --python $(@D) --reinstall-package chroma-manager $(GROUPS) "$$(echo dist/*.whl)$(EXTRA)" $(APP)
	$(if $(ASIDE),rm -rf $(@D)/$(ASIDE) && $(INSTALL) --python $(@D) --no-deps --target $(@D)/$(ASIDE) --group $(ASIDE))
	touch $@

# Only in the environment whose Python runs `make lint`.
.venv/%/linters: .venv/%/ready
	$(INSTALL) --python $(@D) --group lint
	touch $@
