# `make demo` and `make test` set everything up by themselves; they need python3, make and a C
# compiler. The targets below the line "Pipelines" work on your data: make masks DATA=my/data

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
PIP    := SAM2_BUILD_CUDA=0 $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt
GPU    ?=

DATA   ?= data
PRESET ?= best

.PHONY: install demo test check bench masks validate normalize clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo 'make demo               masks for real photographs that installed packages ship, nothing downloaded'
	@echo 'make test               lint, types, import contracts and all tests'
	@echo 'make check              lint, types and import contracts'
	@echo 'make bench              every number that the docs quote'
	@echo 'make masks DATA=dir     masks for dir/faces in dir/masks (PRESET=best|fast|embedded)'
	@echo 'make validate DATA=dir  check a data set'

# ------------------------------------------------------------------ set-up
$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# torch comes first: sam2 is built against it. One torch and torchvision pair, pinned.
$(VENV)/.installed: pyproject.toml constraints.txt gpu-overrides.txt | $(UV)
	$(PIP) torch torchvision setuptools wheel numpy
	$(PIP) -e '.[dev$(if $(GPU),$(comma)gpu)]' $(if $(GPU),--overrides gpu-overrides.txt)
	touch $@
comma := ,

install: $(VENV)/.installed

# ------------------------------------------------------------------ checks
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --verbose | tail -n 12

test: check
	$(BIN)/pytest
