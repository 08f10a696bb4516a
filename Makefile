# Everything runs in .venv, made on first use. Needs Python 3.11 and make, no more.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint types unit bench clean

help:
	@echo "make demo   convert, sample and verify a small real buffer"
	@echo "make test   lint, types and tests; WING=manifest for the tests of one wing"
	@echo "make test-long  tests that take minutes"
	@echo "make bench  the figures of docs/performance.md"
	@echo "make clean  take away what the others made"

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zarrbuf needs Python 3.11 or later; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,test]'
	touch $@

$(VENV)/.bench-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m toolkits.demo out/demo

test: lint types unit

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

unit: $(VENV)/.ready
	$(BIN)/python -m pytest $(if $(WING),tests/test_layering.py tests/$(WING))

test-long: $(VENV)/.ready
	$(BIN)/python -m pytest -m long --timeout 1800

bench: $(VENV)/.bench-ready
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
