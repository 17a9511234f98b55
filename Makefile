# Everything a contributor types. Each target works in the environment that is active.
PYTHON ?= python

.PHONY: install check test test-all docs bench

install:  ## the package in editable mode, with every extra and the tools
	$(PYTHON) -m pip install --quiet --editable ".[dev]"

check: docs  ## style, types, documentation
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:  ## the suite without the slow tests, on every core
	$(PYTHON) -m pytest -n auto --dist worksteal -m "not slow"

test-all:  ## the whole suite
	$(PYTHON) -m pytest -n auto --dist worksteal

docs:  ## the documentation, warnings are errors
	$(PYTHON) -m sphinx -q -W --keep-going -b html docs docs/_build/html

bench:  ## parameters, FLOPs and throughput of the main backbones, in about two minutes
	ferattn bench --quick
