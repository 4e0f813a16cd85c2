# What a person runs, and what continuous integration runs. A fresh machine needs Python 3.10 or newer and a C++ compiler.
#
#   make demo      environment; from the sample's photos to poses, training, scores, pictures, video
#   make test      the tests that take minutes together     make test-slow   the others
#   make lint      ruff, mypy, import-linter                make bench       quick measurements; FULL=1: the tables
#   make gpu       what only a GPU can show: its tests and its measurements

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
MINUTES ?= 1
# Windows has no bin folder in its environments.
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

SOURCES := $(shell find src csrc -type f \( -name '*.py' -o -name '*.h' -o -name '*.cpp' -o -name '*.json' \) 2>/dev/null)

.PHONY: venv install demo test test-slow bench gpu lint clean
.DEFAULT_GOAL := demo

venv: $(VENV)/made

$(VENV)/made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

install: $(VENV)/installed

$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt CMakeLists.txt $(SOURCES)
	$(BIN)/python -m pip install --quiet -c constraints.txt ".[dev]"
	@touch $@

demo: install
	$(BIN)/lightfold run examples/sample/images --capture $(RUN)-capture --scene.downscale 2 --minutes $(MINUTES) --out $(RUN)
	@echo
	@echo "Open in a browser: $(RUN)/report.html (pictures, video, curves, scores), $(RUN)-capture/poses.html (the cameras)."

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU, whose PyTorch is there already: PYTHON's own packages, nothing is installed.
gpu:
	$(PYTHON) -m pytest -q tests/test_on_a_gpu.py tests/test_recording.py $(wildcard tests/methods/test_*_on_gpu.py) \
		$(filter-out %_compiles.py,$(wildcard tests/ops/test_triton_*.py))
	$(PYTHON) -m benchmarks.gpu $(if $(QUICK),--quick)

bench: install
	$(BIN)/python -m benchmarks $(if $(FULL),--full)

lint: install
	$(BIN)/ruff check src tests $(wildcard examples benchmarks)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean:
	rm -rf $(VENV) build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
