# The two commands: `make run` and `make test`. Each sets up everything first; a second call installs nothing.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/uv/bin/uv
export UV_PYTHON := $(BIN)/python
export PYTHONPATH :=

.PHONY: help setup run test lint lock

help: ## List these targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

setup: $(VENV)/.installed ## Create .venv from requirements.lock

run: setup ## Run the whole chain on params.yaml
	$(BIN)/diptych run

test: lint ## Check types and style, and run all tests with coverage
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

lint: setup ## Check types and style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(UV) ## Renew requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --group dev --no-annotate --no-header --upgrade \
		--no-emit-index-url --no-emit-find-links --python-version 3.11 pyproject.toml -o requirements.lock

# Compiled at once: every later start would otherwise compile what it imports, or be three times slower without.
$(VENV)/.installed: requirements.lock pyproject.toml | $(UV)
	$(UV) pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# uv lies beside the packages, not among them: the lock decides about those alone.
$(UV): | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/uv 'uv>=0.9,<1'

$(BIN)/python:
	@for python in python3 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "creating $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); \
		fi; \
	done; echo "error: diptych needs Python 3.11 or newer, with its venv module, on PATH." >&2; exit 1
