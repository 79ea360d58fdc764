# make demo    fresh machine → environment, tiny model trained, index built, queries traced, page written
# make test    fresh machine → environment, lint, types, all tests
# make test-faults   kills fifty builds and re-indexes at random, starts them again and compares (half an hour; FAULTS=50)
# make check   lint, formatting and types only
# make bench   speed: every benchmark writes JSON and a table into benchmarks/results/
# make bench-facts   fact tracing: every row of the ablation, tail-patch, retraining (90 minutes; ARGS=--small: five)
# make bench-frontier   influence per byte: whitened projections, int8 and sign bits, 1 to 128 KB a document (hours; ARGS=--small: two minutes)
# make deploy-plan   what `make deploy` would do on Google Cloud and what it lacks; renders templates and launch bodies
# make deploy        does it (docs/operations.md)
# make clean   drops caches and what the demo and the benchmarks wrote (`rm -rf .venv` drops the environment)
#
# PYTHON=…  the interpreter to make the environment with (3.11 or 3.12)
# TORCH=…   what to install as torch; by default the CPU build of the version in constraints.txt.
#           On a machine with an NVIDIA GPU: make TORCH=torch==2.13.0 …
# JOBS=…    test processes; by default two where memory permits
# ARGS=…    more words for pytest or `trackstar demo`

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults check bench bench-facts bench-frontier deploy-plan deploy clean
.DELETE_ON_ERROR:

SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
    "$$p" -c '$(SUITABLE)' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
JOBS ?= $(shell awk '/^MemAvailable/ { n = $$2 > 6 * 1024 * 1024 ? 2 : 0 } END { print n + 0 }' /proc/meminfo 2>/dev/null || echo 0)
FAULTS ?= 50
CODE := trackstar pipelines tests benchmarks deploy

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

demo: $(VENV)/installed
	$(BIN)/trackstar demo $(ARGS)

test: check
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-faults: $(VENV)/installed
	FAULTS=$(FAULTS) $(BIN)/python -m pytest tests/faults/test_kills.py tests/faults/test_watchdog.py $(ARGS)

check: $(VENV)/installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

bench: $(VENV)/installed-bench
	@set -e; for file in $$(grep -l __main__ benchmarks/*.py); do \
	    name=$$(basename "$$file" .py); echo "== $$name"; $(BIN)/python -m "benchmarks.$$name"; done

bench-facts: $(VENV)/installed
	$(BIN)/python -m benchmarks.fact_tracing $(ARGS)

bench-frontier: $(VENV)/installed
	$(BIN)/python -m benchmarks.frontier $(ARGS)

deploy-plan: $(VENV)/installed
	@$(BIN)/python -m deploy.plan $(ARGS)

deploy: $(VENV)/installed
	@$(BIN)/python -m deploy.plan --apply $(ARGS)

clean:
	rm -rf build deploy/build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo_output benchmarks/work
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself: named without "+cpu", pip would take the CUDA build and several GB with it.
$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(SUITABLE)' 2>/dev/null || { \
	    echo "trackstar needs Python 3.11 or 3.12, and none was found as python3.11, python3.12, python3 or python." >&2; \
	    echo "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python" >&2; \
	    exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) lacks the module venv. Debian, Ubuntu: apt install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing torch $(or $(TORCH),$(TORCH_VERSION), CPU build)"
	@if test -n "$(TORCH)"; then $(PIP) install "$(TORCH)"; \
	elif $(PIP) install --quiet "torch==$(TORCH_VERSION)+cpu" 2>/dev/null; then :; \
	else $(PIP) install "torch==$(TORCH_VERSION)"; fi
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	@touch $@
