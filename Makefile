# make demo | test | test-cluster | lint | docs: each sets up .venv by itself; needs Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-cluster lint docs

demo: $(READY)
	$(BIN)/python run.py -m experiment=demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-cluster: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,slurm,ray]'
	$(BIN)/python -m pytest -m cluster tests/test_cluster.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python scripts/make_docs.py
	$(BIN)/mkdocs build --strict

$(READY): pyproject.toml setup.py $(wildcard activations/kernels/csrc/*)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)
