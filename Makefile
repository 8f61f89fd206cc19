# Everything a stranger needs, from a machine with only Python, pip and make:
#   make demo   install what the demo needs and run it
#   make test   install what the tests need; lint, types, wheel, docs, tests
#   make docs   build the documentation into site/
#   make hosts  the examples of other libraries with those libraries, in an environment of their own
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS   ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs wheel hosts clean

help:
	@grep -E '^#  ' Makefile | sed 's/^#  //'

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "adaptive-margin needs Python 3.10 or newer: make PYTHON=/path/to/python3"'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): the first time downloads PyTorch, which takes some minutes."
	$(PIP) -e '.[fer]'
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): the first time downloads PyTorch, which takes some minutes."
	$(PIP) -e '.[eval,docs,dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py
	$(BIN)/python benchmarks/fer_caf.py --arms none caf --iterations 300 --output runs/demo-faces

test: lint types wheel docs
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/.dev
	@rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null

hosts:
	$(PYTHON) -m venv $(VENV)-hosts
	$(VENV)-hosts/bin/python -m pip install --quiet --disable-pip-version-check -e '.[hosts]' pytest hypothesis
	$(VENV)-hosts/bin/python -m pytest -m hosts tests/test_examples_hosts.py

clean:
	rm -rf $(VENV) $(VENV)-hosts dist site build .pytest_cache .mypy_cache .ruff_cache .hypothesis
