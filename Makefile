# Each target does its own set-up: a virtual environment in .venv with torch, yuzu (editable) and the tools.
# Needs Python >= 3.10 with venv, and make. To use another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where pip's own index holds torch with CUDA and the CPU build is wanted, pass PyTorch's CPU index: make test TORCH_INDEX=URL
TORCH_INDEX ?=

.PHONY: demo test test-quick test-pretended-cuda lint docs benchmark benchmark-full benchmark-models figures train tutorials clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"yuzu needs Python >= 3.10, and $(PYTHON) is {sys.version}: make PYTHON=...")'
	@echo "Setting up $(VENV): PyTorch and what the tests and pictures need, about 3 GB on disk. Some minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python tutorials/demo.py

test: $(STAMP)
	@# one thread for each worker: threads that wait for one another on busy cores are many times slower
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

# a case or more of every family, way, route and file: for every day, under a minute on two quiet cores
QUICK := tests/capture/test_export.py tests/capture/test_refused.py tests/rewrite/test_simplify.py \
	tests/handlers/test_convolution.py tests/handlers/test_pool.py tests/handlers/test_elementwise.py tests/handlers/test_norms.py \
	tests/handlers/test_merge.py tests/handlers/test_view.py tests/handlers/test_dense.py tests/ways/test_every_exact_way.py \
	tests/ways/test_dense.py tests/plan/test_windows.py tests/plan/test_fusion.py tests/run/test_chunks.py tests/store/test_files.py \
	tests/store/test_kept.py tests/store/test_refused.py tests/tune/test_verify.py tests/test_precompute.py tests/test_check.py \
	tests/test_yuzu_ism_outputs.py tests/test_yuzu_ism_positions.py tests/test_bad_arguments.py
test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -k "not law_in_float64" $(QUICK) $(ARGS)

# the tests on CUDA where there is none, on a device that computes on the CPU: finds tensors of two devices, and no speed
test-pretended-cuda: $(STAMP)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 PYTHONPATH=tests $(BIN)/python -m pytest -n auto -p pretended_cuda -k cuda tests $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the site, in build/site; fails on a broken link, a page that is not in the menu or a name without a docstring
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

benchmark: $(STAMP)
	TORCH_INDEX='$(TORCH_INDEX)' $(BIN)/python benchmarks/benchmark.py $(ARGS)

benchmark-full: $(STAMP)
	TORCH_INDEX='$(TORCH_INDEX)' $(BIN)/python benchmarks/benchmark.py --full $(ARGS)

# every architecture of benchmarks/models beside naive ISM and tangermeme; some rows: make benchmark-models ARGS="DanQ LegNet"
benchmark-models: $(STAMP)
	$(BIN)/python benchmarks/models_benchmark.py $(ARGS)

figures: $(STAMP)
	$(BIN)/python figs/draw_how_it_works.py
	$(BIN)/python figs/draw_past_windows.py
	$(BIN)/python tutorials/demo.py --out figs/ctcf.png

train: $(STAMP)
	$(BIN)/python tutorials/train_ctcf_model.py $(ARGS)

# runs the notebooks and writes their outputs back; some of them: make tutorials ARGS="01 03"
tutorials: $(STAMP)
	$(BIN)/python tutorials/run.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
