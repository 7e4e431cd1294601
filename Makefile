# Every target makes its own environment first. `make help` lists them.

PYTHON      ?= python3
VENV        ?= .venv
WORKDIR     ?= runs/demo
PYTEST_ARGS ?=
CLAIMS      ?= yes
# Tests run in as many processes as there are cores, up to four: each holds gigabytes.
PARALLEL    ?= -n auto --maxprocesses=4 --dist=worksteal

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all lint format types docs bench \
        experiments-quick constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKDIR=$(WORKDIR) PYTEST_ARGS=$(PYTEST_ARGS)"

setup: $(STAMP)  ## make the environment in $(VENV), once

# The stamp holds the two files the environment was made from. Where only their dates
# changed (a checkout, a copy) nothing is installed, so it works offline.
$(STAMP): pyproject.toml constraints.txt
	@if cat $^ | cmp -s - $@; then touch $@; exit 0; fi; \
	set -e; \
	if ! $(BIN)/python -c 'import pip' >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "layerwise needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	    echo "Name a newer one: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),setup)"; \
	    exit 1; }; \
	  $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"; \
	    exit 1; }; \
	fi; \
	echo "Installing into $(VENV) (about two minutes the first time)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[dev]'; \
	cat $^ > $@

demo: $(STAMP)  ## predict and measure F34 under four schemes; writes $(WORKDIR)
	$(BIN)/python -m experiments.variance_curves \
	  --config=experiments/configs/variance_curves.py:quick --workdir=$(WORKDIR)

test: $(STAMP)  ## the tests and doctests, without the slow ones
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(STAMP)  ## only the slow tests (pytest's 5 means: there is none)
	XLA_FLAGS= $(BIN)/python -m pytest -m slow $(PARALLEL) $(PYTEST_ARGS) || [ $$? -eq 5 ]

test-all: $(STAMP)  ## every test
	XLA_FLAGS= $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

lint: $(STAMP)  ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP)  ## let ruff rewrite the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP)  ## pyrefly
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

docs: $(STAMP)  ## the documentation, in docs/_build/html; no network
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: $(STAMP)  ## speed and memory against what people use today
	$(BIN)/python -m benchmarks.measurement --quick

experiments-quick: $(STAMP)  ## every experiment at its :quick size, and the claims ledger
	$(if $(CLAIMS),$(BIN)/python -m experiments.claims)
	@set -e; for config in experiments/configs/[a-z]*.py; do \
	  name=$$(basename $$config .py); \
	  echo "== $$name"; \
	  $(BIN)/python -m experiments.$$name --config=$$config:quick --workdir=runs/quick/$$name; \
	done

constraints: $(STAMP)  ## renew constraints.txt (both jax lines, every extra but bench)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --upgrade --quiet \
	  --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make constraints" --output-file constraints.txt

clean:  ## remove what was built and cached; leaves $(VENV) and runs/
	rm -rf build dist *.egg-info docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
