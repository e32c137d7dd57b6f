# Everything here runs in .venv, made on first use from constraints.txt. Needs make and Python 3.11 or later.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 3000
# Tests side by side: one more than cores, as many wait for the disk, and four at most. WORKERS=0 for one by one.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((cores < 4 ? cores + 1 : 4)))
# How long a soak, or a fuzz, lasts. A soak may be asked for so many faults of every kind instead: FAULTS=10000, and of
# these for one round alone: ROUND=7.
SECONDS ?= 300
FAULTS ?=
ROUND ?=
# Which suites, and how often: --only writing --only reading --only serving --repeats 5; how cost grows: --only growth
BENCH_ARGS ?=
# Which sample of the matrices `make test` runs, printed at the top: SEED=4f20ab. By default that of the day, so that
# it stays the same while somebody mends what it has found, and another day sees other cases.
SEED ?=
SAMPLE = $(or $(SEED),$(shell date +%F))
# More for pytest, such as PYTEST_ARGS="-k ledger --durations=10"
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

export DAGSTER_DISABLE_TELEMETRY := 1
# One event that announces a backfill, instead of one for each of its windows.
export DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# Where it is set, each of the many processes that tests start would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help test test-quick quick-tests test-all lint format dev demo bench soak fuzz docs screenshots clean

help:  ## Show these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadgroup --bar

test: lint  ## Lint, type-check, run the tests (installs the servers that some need, where it may)
	@echo "Servers of the tests ..." && .ci/install-servers
	@echo "Tests, by $(WORKERS) processes ..."
	@$(PYTEST) --sample --seed $(SAMPLE) -m "not bench" $(PYTEST_ARGS)

test-quick: $(VENV)/.installed-dev  ## The same without what is long or needs a server or process: two minutes, for while you work
	@$(MAKE) --no-print-directory -j2 lint quick-tests

quick-tests: $(VENV)/.installed-dev
	@echo "Short tests without servers and processes, by $(WORKERS) processes ..."
	@$(PYTEST) --quick --seed $(SAMPLE) -m "not bench" $(PYTEST_ARGS)

test-all: lint  ## The same with all cases of all matrices, and long fuzzing and soaking: an hour or two
	@echo "Servers of the tests ..." && .ci/install-servers
	@echo "Tests, all of them, by $(WORKERS) processes ..."
	@$(PYTEST) --thorough -m "not bench" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## Lint and type-check only
	@echo "Lint ..."
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@echo "Types, in half a minute ..."
	@$(BIN)/pyright

format: $(VENV)/.installed-dev  ## Format the code and fix what the linter can fix
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

dev: $(VENV)/.installed-demo  ## Start Dagster on http://127.0.0.1:3000 with its sensors on (PORT=, HOST=; DEMO=1 to look at the demo)
	@mkdir -p .dagster_home && ln -sfn ../dagster.yaml .dagster_home/dagster.yaml
	@umask 007; export DAGSTER_HOME="$(CURDIR)/.dagster_home"; \
	  $(if $(DEMO),test -e .demo/environment || { echo "There is no demo to look at: run 'make demo' first" >&2; exit 1; }; \
	    . ./.demo/environment;) \
	  exec $(BIN)/python scripts/dagster_dev.py --workspace workspace.yaml --host $(HOST) --port $(PORT)

demo: $(VENV)/.installed-demo  ## Show the whole path on real flight data, in minutes
	@$(BIN)/python -m examples.demo

bench: $(VENV)/.installed-dev  ## Measure throughput, latency and memory (BENCH_ARGS="--only writing --repeats 3")
	@$(BIN)/python -m timestore_pipeline_tests.bench $(BENCH_ARGS)

soak: $(VENV)/.installed-dev  ## Kill processes at random, or inject FAULTS=10000, and count every row (SECONDS=300, SEED=)
	@$(BIN)/python -m timestore_pipeline_tests.soak --seconds $(SECONDS) $(if $(FAULTS),--faults $(FAULTS)) \
	  $(if $(ROUND),--round $(ROUND)) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.installed-dev  ## Mutated files, bodies and frames, a good batch after each (SECONDS=300, SEED= to repeat one)
	@$(BIN)/python -m timestore_pipeline_tests.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

docs: $(VENV)/.installed-dev  ## Regenerate the reference pages from the code
	@$(BIN)/python -m docs.build.reference

screenshots: $(VENV)/.installed-dev  ## Take the pictures of docs/ui.md from the demo, in headless Chromium
	@command -v chromium >/dev/null || .ci/install-servers
	@test -e .demo/environment || $(BIN)/python -m examples.demo
	@$(BIN)/python -m timestore_pipeline_tests.screenshots

clean:  ## Remove what these targets made, the .venv included; leaves data/ and .dagster_home/
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo and Dagster itself need less than the tests, so they start sooner.
$(VENV)/.installed-demo: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing timestore-pipeline into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.created
	@echo "Installing timestore-pipeline and its test tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@touch $(VENV)/.installed-demo $@

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)'. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) can't make a venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
