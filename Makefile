# Every entry of the project. A second run of any target is fast and changes nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export FT_HOME ?= $(CURDIR)/.ft
export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONWARNINGS := ignore::DeprecationWarning
# uv does not read pip's settings: hand it the folder of local wheels that pip is configured with, if there is one.
FIND_LINKS = $(shell $(PYTHON) -m pip config list 2>/dev/null | sed -n "s/^[^=]*find-links='\([^']*\)'.*/--find-links \1/p" | head -1)

.PHONY: help setup demo dev test check test-cluster bench bench-scale fmt lint lock clean
help:            ## Show this list.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## Create .venv and install the locked dependencies.

# pip alone also works and takes ten times as long; it is the road when uv cannot reach the index that pip is set up for.
$(VENV)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing $$(grep -c == requirements.lock) locked packages ..."
	@$(BIN)/uv pip install --quiet --python $(BIN)/python $(FIND_LINKS) -r requirements.lock \
	  || $(BIN)/python -m pip install --quiet -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup      ## The whole road on this machine: dirty data to a served, gated, signed adapter.
	@$(BIN)/ft-pipeline demo

dev: setup       ## Dagster UI + daemon (localhost:3000) and MLflow UI (localhost:5000).
	@$(BIN)/ft-pipeline dev

lint: setup      ## Formatting, lint, import rules, types.
	$(BIN)/ruff format --check ft_pipeline ft_pipeline_tests
	$(BIN)/ruff check ft_pipeline ft_pipeline_tests
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

check: lint      ## The fast core, about three minutes.
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not cluster and not vllm"

test: lint       ## Everything: what .ci/run calls.
	$(BIN)/python -m pytest -n 2 -m "not gpu and not cluster and not vllm"

test-cluster: setup ## End to end on the cluster of KUBECONFIG: CLUSTER="--cluster-image=repo@sha256:..." or "--host-python=/path/python".
	$(BIN)/python -m pytest -p no:xdist -m cluster -rs $(CLUSTER) ft_pipeline_tests/workers/test_cluster.py

bench: setup     ## Measured ratios against named baselines; see BENCHMARKS.md.
	$(BIN)/python -m pytest ft_pipeline_tests/bench.py ft_pipeline_tests/bench_models.py ft_pipeline_tests/bench_training.py \
	  -p ft_pipeline_tests.bench_board -p no:xdist --benchmark-only --benchmark-columns=min,median,rounds

bench-scale: setup ## The data rooms on a million rows: ten minutes, 4 GB of disk.
	@for race in dedupe contamination pack half; do $(BIN)/python -m ft_pipeline_tests.bench_scale $$race || exit 1; done

fmt: setup       ## Format and fix what can be fixed.
	$(BIN)/ruff format ft_pipeline ft_pipeline_tests
	$(BIN)/ruff check --fix ft_pipeline ft_pipeline_tests

lock: setup      ## Resolve requirements.in anew into requirements.lock: names and versions, no hosts.
	$(BIN)/uv pip compile requirements.in --python-version 3.11 $(FIND_LINKS) --no-header --no-annotate --quiet \
	  | sed -E 's/\+cpu$$//' > requirements.lock.new && mv requirements.lock.new requirements.lock

clean:           ## Remove the environment and caches; keeps .ft (your store). `rm -r .ft` forgets everything.
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
