.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z][a-z0-9-]*( [a-z][a-z0-9-]*)*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

.PHONY: setup
setup:  ## build .venv with everything (a no-op when nothing changed)
	@PYTHON=$(PYTHON) scripts/setup.sh

.PHONY: test test-all lint
test: lint  ## lint, types and the fast tests
	$(PY) -m pytest -m "not slow"
test-all: lint  ## also the slow tests (vLLM, kills, hostile programs)
	$(PY) -m pytest
lint:  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy mos data_prep eval scripts
