# `make demo` and `make test` set everything up by themselves; they need python3, make and a C
# compiler, and the network for packages alone. The pipelines work on your data: make masks DATA=dir

# Where it is set, every process compiles torch and diffusers anew: 16 s instead of 7.
unexport PYTHONDONTWRITEBYTECODE

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
.PHONY: help install demo test check browser bench docs all masks embed augment priors validate clean FORCE

help:
	@echo 'make demo               masks for real photographs that installed packages carry'
	@echo 'make test               lint, types, import contracts, all tests'
	@echo 'make check              lint, types, import contracts'
	@echo 'make bench              every number that the documents quote'
	@echo 'make docs               the pages under docs/commands'
	@echo 'make masks DATA=dir     masks of dir/faces in dir/masks  (PRESET=best|fast|embedded, FLAGS=...)'
	@echo 'make augment DATA=dir   variants of each pair in dir/augmented  (VARIANTS=4)'
	@echo 'make embed DATA=dir     who is in each image: dir/embeddings.safetensors'
	@echo "make priors DATA=dir CLASS='a person'   class images in dir/priors  (N=200, MODEL=id or folder)"
	@echo 'make validate DATA=dir  check dir/faces against dir/masks'
	@echo 'make all DATA=dir       all of these, in order'
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

# Two processes; a test file stays in one of them. The pages are tested in a real browser.
test: check browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Debian's Chromium where apt may install it, playwright's own elsewhere.
CHROMIUM = command -v chromium || command -v chromium-browser || command -v google-chrome
browser: install
	@$(CHROMIUM) >/dev/null || (test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null) \
	  || $(BIN)/playwright install chromium

docs: install
	$(BIN)/python -m docs.generate

# One table of them all, in under 15 minutes; what each prints by itself is in build/bench.
bench: install
	@$(BIN)/python -m benchmarks

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
# A step is made again when something in the folders it reads is newer than its last start, or in
# the folder it writes newer than its last end, or with other settings; an unchanged data set costs
# nothing. The commands themselves then redo only what has changed.
STATE  := $(DATA)/.lora-prep
IMAGES := $(firstword $(wildcard $(DATA)/faces $(DATA)/images) $(DATA))
CLASS  ?=
N      ?= 200
MODEL  ?=
VARIANTS ?= 4

newer = $(shell test -e '$(1)' && find -L $(2) -newer '$(1)' -print -quit 2>/dev/null || echo new)
stamp = $(STATE)/made-$(1)-$(shell echo '$(2)' | cksum | tr ' ' '-')

# $(call step,name,arguments,folders it reads,what it writes,steps before it)
define step
STAMP_$(1) := $$(call stamp,$(1),$(2))
$(1): $$(STAMP_$(1))
$$(STAMP_$(1)): $$(if $$(call newer,$$(STAMP_$(1)).start,$(3))$$(call newer,$$(STAMP_$(1)),$(4)),FORCE) $(5) | install
	@test -d '$(DATA)' || { echo 'there is no folder $(DATA): say where it is, as in make $(1) DATA=dir'; exit 2; }
	@mkdir -p '$(STATE)' && touch '$(STATE)/starting-$(1)'
	@$$(info $(BIN)/lora-prep $(1) $(2))$(BIN)/lora-prep $(1) $(2) && rm -f '$(STATE)'/made-$(1)-* \
	  && mv '$(STATE)/starting-$(1)' '$$@.start' && touch '$$@' $$(GO_ON)
endef

MASKED = $(call stamp,masks,'$(DATA)' --preset $(PRESET) $(FLAGS))
$(eval $(call step,masks,'$(DATA)' --preset $(PRESET) $(FLAGS),'$(IMAGES)','$(DATA)/masks',))
$(eval $(call step,embed,'$(DATA)' --preset $(PRESET),'$(IMAGES)','$(DATA)/embeddings.safetensors',))
$(eval $(call step,augment,'$(DATA)' -n $(VARIANTS),'$(IMAGES)' '$(DATA)/masks','$(DATA)/augmented',$(MASKED)))
ifneq ($(CLASS),)
$(eval $(call step,priors,'$(DATA)' --class '$(CLASS)' -n $(N) $(if $(MODEL),--model '$(MODEL)'),'$(STATE)','$(DATA)/priors',))
else
priors:
	@echo "make priors wants CLASS, as in: make priors DATA=$(DATA) CLASS='a person'"; exit 2
endif

validate: install
	$(BIN)/lora-prep validate '$(DATA)'

# Everything, in order: masks, embeddings, augmented pairs, class images with CLASS, and the checks.
# An image that fails (exit code 1) does not keep the rest: validate names it in the end.
all: GO_ON := || test $$? = 1
all: masks $(if $(filter embedded,$(PRESET)),,embed) augment $(if $(CLASS),priors)
	$(BIN)/lora-prep validate '$(DATA)'

FORCE:
