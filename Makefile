# Everything a stranger needs, from a machine with only Python, pip and make:
#   make demo   install what the demo needs and run it
#   make test   install what the tests need; lint, types, wheel, docs, tests
#   make fast   lint, types and the plugin's tests, without compiled code: while you work
#   make docs   build the documentation into site/
#   make oldest the plugin's tests with the oldest Python, torch and host that pyproject.toml allows
#   make hosts  the examples of other libraries with those libraries, in an environment of their own, about 6.5 GB
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS   ?= 2
PYTEST := -m pytest -n $(JOBS) --dist worksteal

# Tests start hundreds of processes: without byte code each would compile the package.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test fast oldest lint types docs wheel hosts clean

help:
	@grep -E '^#  ' Makefile | sed 's/^#  //'

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "adaptive-margin needs Python 3.10 or newer: make PYTHON=/path/to/python3"'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): the first time downloads PyTorch, which takes some minutes."
	$(PIP) -e '.[fer,detect,hub]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): the first time downloads PyTorch, which takes some minutes."
	$(PIP) -e '.[eval,docs,dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py
	$(BIN)/python benchmarks/fer_caf.py --arms none caf --iterations 300 --output runs/demo-faces

test: lint types wheel docs
	$(BIN)/python $(PYTEST)

PLUGIN := tests/functional tests/margins tests/grouping tests/losses tests/miners

fast: lint types
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow" -k "not compil" -q $(PLUGIN)

# A second environment, about 5.5 GB: the oldest interpreter at hand that pyproject.toml allows, else $(PYTHON).
OLDEST ?= $(shell for python in python3.10 $$HOME/.pyenv/versions/3.10.*/bin/python; do \
  $$python -c 'pass' 2>/dev/null && echo $$python && break; done)

$(VENV)-oldest/.ready: pyproject.toml constraints-oldest.txt
	@$(if $(OLDEST),,echo "No Python 3.10 here: $(PYTHON) stands in for the oldest.")
	$(or $(OLDEST),$(PYTHON)) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check -c constraints-oldest.txt -e . pytest pytest-xdist hypothesis
	@touch $@

oldest: $(VENV)-oldest/.ready
	@$(VENV)-oldest/bin/python -c 'import sys, torch, pytorch_metric_learning as host; print("Python", sys.version.split()[0], "torch", torch.__version__, "host", host.__version__)'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python $(PYTEST) -m "not slow" -q $(PLUGIN)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z '*.py' '*.md' '*.toml' '*.yml' '*.html' Makefile | xargs -0 $(BIN)/codespell

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html can be opened from disk; $(BIN)/mkdocs serve shows pages as they change."

wheel: $(VENV)/.dev
	@rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null

hosts:
	$(PYTHON) -m venv $(VENV)-hosts
	$(VENV)-hosts/bin/python -m pip install --quiet --disable-pip-version-check -e '.[hosts]' pytest hypothesis
	$(VENV)-hosts/bin/python -m pytest -m hosts tests/test_examples_hosts.py tests/test_examples_frameworks.py tests/integrations

clean:
	rm -rf $(VENV) $(VENV)-hosts $(VENV)-oldest dist site build .pytest_cache .mypy_cache .ruff_cache .hypothesis
