# The three commands: `make run`, `make search` and `make test`. Each sets up everything first; a second call installs nothing.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/uv/bin/uv
export UV_PYTHON := $(BIN)/python
export PYTHONPATH :=

# What torch loads only where a GPU is: without one, 1.5 GB less (docs/decisions/installing.md). `make setup GPU=1` installs
# it where no GPU is seen.
GPU := $(wildcard /dev/nvidiactl /proc/driver/nvidia /dev/dxg)
FOR_GPU := triton cuda-bindings cuda-pathfinder nvidia-cuda-cccl nvidia-cusolver nvidia-nvjitlink nvidia-nvtx

# $(call INSTALL,WITHOUT) resolves pyproject.toml within the versions and hashes of the lock; that it can says that they fit
# together. Compiled at once: every later start would otherwise compile what it imports, or be three times slower without.
INSTALL = printf '%s\n' $(1) | $(UV) pip install --quiet --compile-bytecode --constraint requirements.lock \
	--requirements pyproject.toml --extra stack setuptools --excludes -
LOCK = $(UV) pip compile --quiet --universal --generate-hashes --no-annotate --no-header --upgrade \
	--no-emit-index-url --no-emit-find-links --python-version 3.11

.PHONY: help setup run search test coverage test-fast test-stack lint audit benchmarks lock afresh

help: ## List these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

# A virtual environment holds its own path, so one that was moved or copied runs the code of the former project.
setup: $(VENV)/.installed $(if $(GPU),$(VENV)/.installed-gpu) ## Create .venv with the packages of a run
	@$(BIN)/python -c 'import diptych, os; assert os.path.samefile(diptych.__file__, "src/diptych/__init__.py")' \
		2>/dev/null || { echo "error: $(VENV) was made in another folder: rm -r $(VENV), then run this again." >&2; exit 1; }

run: setup ## Run the whole chain on params.yaml
	$(BIN)/diptych run

search: setup ## Index the dataset with the model at hand, and open the search page
	$(BIN)/diptych index
	$(BIN)/diptych serve --open

test: lint ## Check types and style, and run all tests
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

coverage: setup $(VENV)/.installed-dev ## Run all tests, and show which lines and branches none of them runs
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

test-fast: setup $(VENV)/.installed-dev ## Run the tests that start no server and no process with torch
	$(BIN)/pytest --numprocesses=2 --dist=loadfile -m "not slow"

test-stack: setup $(VENV)/.installed-dev ## Build the image and test the stack in containers; starts Docker where none answers
	docker/testing/with-engine.sh $(BIN)/pytest --exitfirst --no-cov tests/stack/containers

lint: setup $(VENV)/.installed-dev ## Check types, style and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

audit: setup ## Ask PyPI for known vulnerabilities of what requirements.lock names; needs a network
	$(UV) tool run pip-audit --strict --disable-pip --require-hashes -r requirements.lock

benchmarks: setup $(VENV)/.installed-dev $(VENV)-benchmarks/.installed ## Create .venv-benchmarks with the systems to compare with

lock: $(UV) ## Renew requirements.lock, and benchmarks/requirements.txt after it
	$(LOCK) --group dev --extra stack pyproject.toml -o requirements.lock
	$(LOCK) --constraint requirements.lock benchmarks/requirements.in -o benchmarks/requirements.txt

# The first stamp removes all that is in none of its packages; the others add to it.
$(VENV)/.installed: requirements.lock pyproject.toml $(if $(wildcard $(VENV)/.begun),afresh) | $(UV)
	@touch $(VENV)/.begun
	@echo 'Installing into $(VENV): 5 to 6 GB; a minute or two once they are fetched.' >&2
	$(call INSTALL,$(FOR_GPU)) --exact
	$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.begun
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@touch $(VENV)/.begun
	$(call INSTALL,$(FOR_GPU)) --group dev
	@rm -f $(VENV)/.begun
	@touch $@

$(VENV)/.installed-gpu: $(VENV)/.installed
	@touch $(VENV)/.begun
	$(call INSTALL)
	@rm -f $(VENV)/.begun
	@touch $@

# uv takes a package for installed whose files a kill left incomplete, and with --reinstall may download all again. Where
# the index does not answer, nothing is removed.
afresh: | $(UV)
	$(call INSTALL,$(FOR_GPU)) --dry-run
	rm -rf $(VENV)/lib/python*/site-packages
	$(BIN)/python -m ensurepip >/dev/null

# Apart, so that no requirement of another system has a say in requirements.lock.
$(VENV)-benchmarks/.installed: benchmarks/requirements.txt | $(UV)
	$(UV) venv --quiet --allow-existing $(@D)
	$(UV) pip sync --quiet --python $(@D)/bin/python --require-hashes benchmarks/requirements.txt
	@touch $@

# uv lies beside the packages, not among them: the lock decides about those alone. It comes last, by a move, so that where it
# is, the virtual environment is whole; what a kill has left before that is made afresh.
$(UV):
	@for python in python3 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "creating $(VENV) with $$($$python --version)"; exec $$python -m venv --clear $(VENV); \
		fi; \
	done; echo "error: diptych needs Python 3.11 or newer, with its venv module, on PATH." >&2; exit 1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/uv.new 'uv>=0.13,<1'
	@mv $(VENV)/uv.new $(VENV)/uv
