# `make demo` and `make test` set everything up by themselves; they need python3, make and a C
# compiler, and the network for packages alone. The pipelines work on your data: make masks DATA=dir

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
# GPU=1 installs onnxruntime-gpu in place of onnxruntime; the environment remembers it.
GPU    ?= $(wildcard $(VENV)/.gpu)

DATA   ?= data
PRESET ?= best
FLAGS  ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench docs masks validate clean FORCE

help:
	@echo 'make demo               masks for real photographs that installed packages carry'
	@echo 'make test               lint, types, import contracts, all tests'
	@echo 'make check              lint, types, import contracts'
	@echo 'make bench              every number that the documents quote'
	@echo 'make docs               the pages under docs/commands'
	@echo 'make masks DATA=dir     masks of dir/faces in dir/masks  (PRESET=best|fast|embedded, FLAGS=...)'
	@echo 'make validate DATA=dir  check dir/faces against dir/masks'
	@echo 'make clean              remove the demo and all caches, not the data'

# ---------------------------------------------------------------------------- set-up
PIP := SAM2_BUILD_CUDA=0 $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt

$(UV):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# torch first: sam2 is built against the one that is installed, not against a second copy.
$(VENV)/.installed: pyproject.toml constraints.txt | $(UV)
	$(PIP) torch torchvision setuptools wheel numpy
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.gpu: pyproject.toml constraints.txt gpu-overrides.txt | $(UV)
	$(PIP) torch torchvision setuptools wheel numpy
	$(UV) pip uninstall --quiet --python $(BIN)/python onnxruntime || true
	$(PIP) -e '.[dev,gpu]' --overrides gpu-overrides.txt --reinstall-package onnxruntime-gpu
	@touch $@

install: $(VENV)/$(if $(GPU),.gpu,.installed)

# ---------------------------------------------------------------------------- development
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest

docs: install
	$(BIN)/python -m docs.generate

bench: install
	$(BIN)/python -m benchmarks.embedded_masks
	$(BIN)/python -m benchmarks.masks

clean:
	rm -rf demo build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# ---------------------------------------------------------------------------- the main job, to look at
demo: install
	$(BIN)/python -m sample_data demo --out demo/photos
	$(BIN)/lora-prep normalize demo/photos --out demo/data/faces
	@echo 'Five of these ten have no face: that they are reported (exit code 1) is part of the demo.'
	$(BIN)/lora-prep masks demo/data/faces --preset embedded --faces all --overlay demo/overlays || test $$? = 1
	$(BIN)/lora-prep validate demo/data || test $$? = 1
	$(BIN)/python -m sample_data sheet demo/overlays --out demo/contact-sheet.png
	@echo 'Look at demo/contact-sheet.png, and at the masks in demo/data/masks.'

# ---------------------------------------------------------------------------- pipelines
# DATA must not have spaces in it: make splits names there (the commands do not mind).
# Made again when something in the image folder is newer than the last start, or in the mask folder
# than the last end, or with other settings; an unchanged data set costs nothing.
STATE := $(DATA)/.lora-prep
IMAGES := $(firstword $(wildcard $(DATA)/faces $(DATA)/images) $(DATA))
MADE  := $(STATE)/made-masks-$(shell echo '$(PRESET) $(FLAGS)' | cksum | tr ' ' '-')
newer = $(shell test -e '$(1)' && find -L '$(2)' -newer '$(1)' -print -quit 2>/dev/null || echo new)

masks: $(MADE)
$(MADE): $(if $(call newer,$(MADE).start,$(IMAGES))$(call newer,$(MADE),$(DATA)/masks),FORCE) | install
	@mkdir -p '$(STATE)' && touch '$(STATE)/starting'
	$(BIN)/lora-prep masks '$(DATA)' --preset $(PRESET) $(FLAGS)
	@rm -f '$(STATE)'/made-masks-* && mv '$(STATE)/starting' '$(MADE).start' && touch '$(MADE)'

validate: install
	$(BIN)/lora-prep validate '$(DATA)'

FORCE:
