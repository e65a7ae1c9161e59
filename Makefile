# Accord. `make help` lists what there is. Everything is installed into .venv by plain pip with constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
export DS_ACCELERATOR ?= cpu

.DEFAULT_GOAL := help
.PHONY: help install demo up check unit test test-all bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Accord needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# DeepSpeed's build asks for torch, so torch comes first and build isolation stays off.
$(VENV)/.runner: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Accord into $(VENV) (a few minutes the first time) ..."
	$(PIP) torch setuptools wheel ninja
	$(PIP) --no-build-isolation --editable '.[runner]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runner
	@echo "Installing the test tools ..."
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

install: $(VENV)/.runner ## install what the service needs into .venv

demo: $(VENV)/.runner ## run the main job whole, on this machine, and show the result
	$(BIN)/accord demo

up: $(VENV)/.runner ## start the service and keep it up
	$(BIN)/accord up

check: $(VENV)/.dev ## format, lint, types, import law
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.dev ## the fast tests (under a minute)
	$(BIN)/pytest -q tests/unit

# What shares no service runs on all cores, file by file; what starts clusters runs alone.
test: $(VENV)/.dev ## all tests but the slow ones
	$(BIN)/pytest -q -m 'not slow and not gpu' -n auto --maxprocesses 8 --dist loadfile --ignore tests/integration
	$(BIN)/pytest -q -m 'not slow and not gpu' tests/integration

test-all: $(VENV)/.dev ## all tests that a CPU can run
	$(BIN)/pytest -q -m 'not gpu' -n auto --maxprocesses 8 --dist loadfile --ignore tests/integration
	$(BIN)/pytest -q -m 'not gpu' tests/integration

bench: $(VENV)/.dev ## the service's step against the same arithmetic in one process
	$(BIN)/python benchmarks/step.py

clean: ## remove .venv, run folders and caches
	rm -rf $(VENV) runs .accord .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
