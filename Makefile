.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python

# What the targets below take, e.g. `make table2 PROFILE=smol METHODS=lora_r2,mos_r8 SEEDS=0,1 LIMIT=40 DATA=data`.
# Unset ones are left to the profile; PROFILE itself goes by what the machine has.
PROFILE ?= $(shell $(PY) -c "from scripts.runs import default_profile; print(default_profile())")
SETTINGS = $(strip profile=$(PROFILE) $(if $(DATA),'data=$(DATA)') $(if $(LIMIT),limit=$(LIMIT)) \
	$(if $(METHODS),'methods=[$(METHODS)]') $(if $(SEEDS),'seeds=[$(SEEDS)]') $(if $(CANDIDATES),candidates=$(CANDIDATES)) \
	$(if $(LAUNCHER),launcher=$(LAUNCHER)) $(if $(DRY),dry=true) $(if $(GPU),'gpus=[$(GPU)]') $(OVERRIDES))

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z][a-z0-9-]*( [a-z][a-z0-9-]*)*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 28

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

.PHONY: table1 table2 table3 tables plan
table1 table2 table3:  ## train and evaluate what is missing, render into results/<profile>/ (variables: docs/tables.md)
	$(PY) -m scripts.tables table=$@ $(SETTINGS)
tables:  ## the three tables; DRY=1 walks every cell and prints the plan instead
	$(PY) -m scripts.tables table=table1 $(SETTINGS)
	$(PY) -m scripts.tables table=table2 $(SETTINGS)
	$(PY) -m scripts.tables table=table3 $(SETTINGS)
plan:  ## memory and time of every cell, e.g. TABLE=table2 PROFILE=paper GPU=a100_40g,rtx4090:24:165
	$(PY) -m scripts.plan table=$(or $(TABLE),table2) $(SETTINGS)

.PHONY: lr-search mos-search
lr-search:  ## the learning rates of Appendix A at LoRA rank 8, ranked by validation loss
	$(PY) -m scripts.search search=lr $(SETTINGS)
mos-search:  ## r, l and p of MoS, ranked by validation loss
	$(PY) -m scripts.search search=mos $(SETTINGS)

.PHONY: report dashboard
report:  ## one self-contained page of a profile's tables, plots and loss curves: report/<profile>.html
	$(PY) -m scripts.report $(SETTINGS)
dashboard:  ## a W&B workspace of the same, for the runs of TABLE=table2 (needs WANDB_API_KEY)
	$(PY) -m scripts.dashboard table=$(or $(TABLE),table2) $(SETTINGS)

.PHONY: bench
bench:  ## time and memory of MoS against LoRA, as ratios over sizes (some 20 minutes on two cores)
	$(PY) -m scripts.bench
.PHONY: bench-eval
bench-eval:  ## items per second against lm-evaluation-harness, adapters against merged checkpoints (needs a network once)
	$(PY) -m scripts.bench_eval profile=smol $(if $(DATA),'data=$(DATA)') $(if $(LIMIT),limit=$(LIMIT)) $(OVERRIDES)

.PHONY: docs
docs:  ## the documentation into site/; a warning fails it
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

.PHONY: clean
clean:  ## remove caches of tools and Python; runs, results and prepared data stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis site build
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
