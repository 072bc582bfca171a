# Each target does its own set-up: a virtual environment in .venv with torch, yuzu (editable) and the tools.
# Needs Python >= 3.10 with venv, and make. To use another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test lint benchmark figures train clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"yuzu needs Python >= 3.10, and $(PYTHON) is {sys.version}: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@# pip retries an index that it cannot reach for every single package, hence the look first.
	@index=; \
	if $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(CPU_INDEX)/torch/", timeout=10)' 2>/dev/null; \
	then index="--extra-index-url $(CPU_INDEX)"; \
	else echo "$(CPU_INDEX) cannot be reached: torch comes from pip's configured index"; fi; \
	set -x; $(BIN)/python -m pip install --quiet --disable-pip-version-check $$index -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python tutorials/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

benchmark: $(STAMP)
	$(BIN)/python benchmarks/benchmark.py $(ARGS)

figures: $(STAMP)
	$(BIN)/python figs/draw_how_it_works.py

train: $(STAMP)
	$(BIN)/python tutorials/train_ctcf_model.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
