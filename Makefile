# opsd: every task of a developer. Each is one line of help; `make` alone prints them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
# FLAVOUR=cpu|cuda|auto and PYTHON=python3.11 reach scripts/preflight.sh, as CXX does.
FLAVOUR ?= auto
export FLAVOUR
ifdef PYTHON
export PYTHON
endif
# make's built-in default is not the user's choice.
ifneq ($(origin CXX),default)
export CXX
endif
# Extra arguments: make demo ARGS="--seed 7", make test ARGS="-k gate".
ARGS ?=
# Processes that run tests; those with an engine stay in one. Threads that spin while they wait for
# each other's turn would cost more than they bring.
JOBS ?= 2

.PHONY: help setup demo test check lint types imports native proto bench lock clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv with everything built and installed [FLAVOUR=cpu|cuda|auto] [PYTHON=python3.11]
	@scripts/setup.sh

# Everything below needs the environment; say so instead of failing on a missing program.
$(BIN)/opsd:
	@echo "no $(VENV) here yet: run 'make setup' first" >&2; exit 1

demo: | $(BIN)/opsd ## Run the whole loop for real on this machine [ARGS="--seed 7"]
	@$(BIN)/opsd demo $(ARGS)

test: | $(BIN)/opsd ## Run the tests [ARGS="-k gate"] [JOBS=2]
	@$(if $(filter-out 0 1,$(JOBS)),OMP_NUM_THREADS=1) $(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

check: lint types imports native test ## Everything CI checks: lint, types, imports, native, test

lint: | $(BIN)/opsd ## Check style and formatting
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: proto ## Check types (mypy, strict)
	@$(BIN)/mypy

imports: | $(BIN)/opsd ## Check that imports keep the directions of the design
	@$(BIN)/lint-imports --no-logo

native: | $(BIN)/opsd ## Compile the C++ and CUDA operators from nothing, warnings as errors
	@rm -rf build/native && mkdir -p build
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python setup.py --quiet build_ext --force \
	  --build-temp build/native/temp --build-lib build/native/lib >build/native.log 2>&1 \
	  || { cat build/native.log >&2; exit 1; }
	@echo "native: $$(find build/native/lib -name '*.so') compiled without a warning"
	@$(BIN)/python setup.py --quiet compile_cuda

proto: | $(BIN)/opsd ## Generate opsd.v1 from proto/
	@$(BIN)/python scripts/build_proto.py

bench: | $(BIN)/opsd ## Run every benchmark; tables here, numbers in build/bench/*.json
	@mkdir -p build/bench
	@for program in bench/*.py; do \
	  [[ -e $$program ]] || { echo "bench/ holds no program yet" >&2; exit 1; }; \
	  echo "== $$program"; \
	  $(BIN)/python "$$program" --json "build/bench/$$(basename "$$program" .py).json" $(ARGS); \
	done

lock: ## Resolve pyproject.toml into requirements/*.lock [ARGS=--upgrade]
	@scripts/lock.sh $(ARGS)

clean: ## Remove what was built, and .venv
	@rm -rf $(VENV) build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@rm -f trainer/opsd/trainer/_C*.so proto/opsd/v1/*_pb2*.py proto/opsd/v1/*_pb2*.pyi
	@find daemon trainer proto tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +
