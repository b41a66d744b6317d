# Needs python3, make and a package registry; everything else is set up in .venv by the first call.
#
#   make run   [ARGS="--max_evals 3200"]    tune the embedded model on the embedded task
#   make test  [ARGS="-k walk"]             the fast tests (slow ones too: ARGS="-m ''")
#   make lint                               ruff, and mypy on the built wheel
#   make clean                              remove .venv, builds and caches

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
TYPES := build/types

.DEFAULT_GOAL := help
.PHONY: help setup run test lint clean

help:
	@sed -n '3,6s/^# *//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV); the first time this takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

run: $(STAMP)
	$(BIN)/zoobj train --max_evals 12800 --output_dir runs/demo --overwrite_output_dir $(ARGS)

# One thread a worker: the tests' tensors are small, and the workers would fight over the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

# The plug-in folders become zoobj.objectives and zoobj.tasks only once installed, so types are
# checked on the wheel.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index \
		--no-build-isolation --target $(TYPES) .
	cd $(TYPES) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p zoobj

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
