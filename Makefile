# The two commands: `make run` and `make test`. Each sets up everything first; a second call installs nothing.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/uv/bin/uv
export UV_PYTHON := $(BIN)/python
export PYTHONPATH :=
LOCK = $(UV) pip compile --quiet --universal --generate-hashes --no-annotate --no-header --upgrade \
	--no-emit-index-url --no-emit-find-links --python-version 3.11

.PHONY: help setup run test lint audit benchmarks lock

help: ## List these targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

# A virtual environment holds its own path, so one that was moved or copied runs the code of the former project.
setup: $(VENV)/.installed ## Create .venv from requirements.lock
	@$(BIN)/python -c 'import diptych, os; assert os.path.samefile(diptych.__file__, "src/diptych/__init__.py")' \
		2>/dev/null || { echo "error: $(VENV) was made in another folder: rm -r $(VENV), then run this again." >&2; exit 1; }

run: setup ## Run the whole chain on params.yaml
	$(BIN)/diptych run

test: lint ## Check types and style, and run all tests with coverage
	$(BIN)/pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

lint: setup ## Check types, style and that the locked packages fit together
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(UV) pip check --quiet

audit: setup ## Ask PyPI for known vulnerabilities of what requirements.lock names; needs a network
	$(UV) tool run pip-audit --strict --disable-pip --require-hashes -r requirements.lock

benchmarks: setup $(VENV)-benchmarks/.installed ## Create .venv-benchmarks with the systems to compare with

lock: $(UV) ## Renew requirements.lock, and benchmarks/requirements.txt after it
	$(LOCK) --group dev --extra stack pyproject.toml -o requirements.lock
	$(LOCK) --constraint requirements.lock benchmarks/requirements.in -o benchmarks/requirements.txt

# Compiled at once: every later start would otherwise compile what it imports, or be three times slower without.
$(VENV)/.installed: requirements.lock pyproject.toml | $(UV)
	$(UV) pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Apart, so that no requirement of another system has a say in requirements.lock.
$(VENV)-benchmarks/.installed: benchmarks/requirements.txt | $(UV)
	$(UV) venv --quiet --allow-existing $(@D)
	$(UV) pip sync --quiet --python $(@D)/bin/python --require-hashes benchmarks/requirements.txt
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
