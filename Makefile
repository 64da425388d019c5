# What a fresh machine needs: python3 (3.11 or newer, with venv) and make. Everything else goes into .venv.
#
#   make demo         install what the demonstration needs and run it
#   make test         every test, slow ones too
#   make test-quick   without the slow tests
#   make check        format, lint and types (make lint, make types)
#   make gpu          check and measure one CUDA GPU in nine minutes (docs/gpu.md)
#   make clean        remove .venv and caches

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV ?= .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough and can make virtual environments. Override: make PYTHON=/usr/bin/python3.12
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 /usr/bin/python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; exit; }; done)
# Arguments of the demonstration, for example: make demo ARGS="--seeds 3"
ARGS ?=
# Where the check of a GPU puts its results.
GPU_OUT ?= out/gpu
# Tests side by side; each has one thread. A worker gets whole files, in the order of tests/conftest.py.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Where torch comes from if not from pip's own settings, for example: https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# A uv that installs packages in place of pip: it loads several at the same time.
UV ?=

PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(if $(UV),$(UV) pip install -q --python $(BIN)/python,$(PIP) install -q) -c constraints.txt
INPUTS := pyproject.toml constraints.txt

export OMP_NUM_THREADS ?= 1

# The stamps count only for an environment that works and holds this very checkout: one that was half made, whose
# Python went away or that was moved is installed anew. -I and `cd /`: as from anywhere else.
HEALTHY := $(shell cd / && $(abspath $(BIN))/python -I -c 'import pip, sys, rlbatch; \
	sys.exit(not rlbatch.__file__.startswith("$(CURDIR)/"))' >/dev/null 2>&1 && echo yes)
ifneq ($(HEALTHY),yes)
$(shell rm -f $(VENV)/.installed-demo $(VENV)/.installed-dev)
endif

.PHONY: demo test test-quick check lint types gpu format venv clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/python -m rlbatch demo $(ARGS)

test: $(VENV)/.installed-dev
	$(PYTEST) $(ARGS)

test-quick: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow" $(ARGS)

check: lint types

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/python -m pyright

# A rehearsal without a GPU: make gpu ARGS="--device cpu --tiny"
gpu: $(VENV)/.installed-dev
	$(BIN)/python scripts/check_gpu.py --out $(GPU_OUT) $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Makes .venv, and makes it anew where an interrupted attempt or a removed Python left one that does not work.
venv:
	@$(PIP) --version >/dev/null 2>&1 || { \
	  test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with the modules venv and ensurepip was found." \
	    "Install one (Debian: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	  echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }

# The stamp is written last: an interrupted install has none and is done again. Torch goes first, so that no other
# package can choose its version.
$(VENV)/.installed-demo: $(INPUTS) | venv
	@echo "Installing rlbatch and what the demonstration needs into $(VENV) (once, some minutes)"
	$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(INSTALL) -e ".[train,report]"
	@touch $@

$(VENV)/.installed-dev: $(INPUTS) $(VENV)/.installed-demo
	@echo "Installing the test tools and every extra into $(VENV) (once, some minutes)"
	$(INSTALL) -e ".[all,dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
