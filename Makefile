# Every entry of the project. A second run of any target is fast and changes nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
EXPORT := .venv-export
export FT_HOME ?= $(CURDIR)/.ft
export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONWARNINGS := ignore::DeprecationWarning
# uv does not read pip's settings: hand it the folder of local wheels that pip is configured with, if there is one.
FIND_LINKS = $(shell $(PYTHON) -m pip config list 2>/dev/null | sed -n "s/^[^=]*find-links='\([^']*\)'.*/--find-links \1/p" | head -1)

.PHONY: help setup setup-export test-export lock-export demo dev test check test-cluster test-node test-vllm bench bench-scale load fmt lint lock lock-vllm clean
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

dev: setup       ## Dagster UI + daemon (localhost:3000), MLflow UI (localhost:5000), platform API (localhost:8400).
	@$(BIN)/ft-pipeline dev

lint: setup      ## Formatting, lint, import rules, types.
	$(BIN)/ruff format --check ft_pipeline ft_pipeline_tests
	$(BIN)/ruff check ft_pipeline ft_pipeline_tests
	$(BIN)/lint-imports
	$(BIN)/pyrefly check

check: lint      ## The fast core, about three minutes.
	$(BIN)/python -m pytest -n logical --maxprocesses 6 -m "not slow and not gpu and not cluster and not vllm and not export"

test: lint       ## Everything: what .ci/run calls.
	$(BIN)/python -m pytest -n logical --maxprocesses 6 --durations 25 -m "not gpu and not cluster and not vllm and not export"

test-cluster: setup ## End to end on the cluster of KUBECONFIG: CLUSTER="--cluster-image=repo@sha256:..." or "--host-python=/path/python".
	$(BIN)/python -m pytest -p no:xdist -m cluster -rs $(CLUSTER) ft_pipeline_tests/workers/test_cluster.py

setup-export: $(EXPORT)/.installed ## Create .venv-export, the environment that quantises: its pins clash with ours.

$(EXPORT)/.installed: $(VENV)/.installed requirements-export.lock
	@test -x $(EXPORT)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(EXPORT)
	@echo "installing $$(grep -c == requirements-export.lock) locked packages ..."
	@$(BIN)/uv pip install --quiet --python $(EXPORT)/bin/python $(FIND_LINKS) -r requirements-export.lock
	@$(BIN)/uv pip install --quiet --python $(EXPORT)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

test-export: setup-export ## Quantised exports for real: every format, its fidelity, its gate.
	$(BIN)/python -m pytest -p no:xdist -m export -rs ft_pipeline_tests/serve/export

$(VLLM)/.installed: requirements-vllm.lock requirements-vllm-overrides.txt pyproject.toml $(VENV)/.installed
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "installing $$(grep -c == requirements-vllm.lock) locked packages, 3.6 GB ..."
	@$(BIN)/uv pip install --quiet --python $(VLLM)/bin/python $(FIND_LINKS) --override requirements-vllm-overrides.txt -r requirements-vllm.lock
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

test-vllm: $(VLLM)/.installed ## A real vLLM server on this CPU, in an environment of its own (.venv-vllm): about seven minutes.
	$(VLLM)/bin/python -m pytest -p no:xdist -m vllm ft_pipeline_tests/serve/test_vllm*.py

test-node: setup ## OpenAI's client for Node through the whole road: needs node and npm; not in CI.
	$(BIN)/python -m ft_pipeline_tests.web.node.run

bench: setup     ## Measured ratios against named baselines; see BENCHMARKS.md.
	$(BIN)/python -m pytest ft_pipeline_tests/bench.py ft_pipeline_tests/bench_models.py ft_pipeline_tests/bench_training.py \
	  -p ft_pipeline_tests.bench_board -p no:xdist --benchmark-only --benchmark-columns=min,median,rounds

bench-scale: setup ## The data rooms on a million rows: ten minutes, 4 GB of disk.
	@for race in dedupe contamination pack half; do $(BIN)/python -m ft_pipeline_tests.bench_scale $$race || exit 1; done

load: setup      ## 1,000 queued jobs of 50 tenants on SQLite and PostgreSQL, with kill -9 in the middle: four minutes.
	@for database in sqlite postgresql; do $(BIN)/python -m ft_pipeline_tests.load_platform $$database || exit 1; done

fmt: setup       ## Format and fix what can be fixed.
	$(BIN)/ruff format ft_pipeline ft_pipeline_tests
	$(BIN)/ruff check --fix ft_pipeline ft_pipeline_tests

lock: setup      ## Resolve requirements.in anew into requirements.lock: names and versions, no hosts.
	$(BIN)/uv pip compile requirements.in --python-version 3.11 $(FIND_LINKS) --no-header --no-annotate --quiet \
	  | sed -E 's/\+cpu$$//' > requirements.lock.new && mv requirements.lock.new requirements.lock

lock-export: setup ## The same for requirements-export.in.
	$(BIN)/uv pip compile requirements-export.in --python-version 3.11 $(FIND_LINKS) --no-header --no-annotate --quiet \
	  | sed -E 's/\+cpu$$//' > requirements-export.lock.new && mv requirements-export.lock.new requirements-export.lock

lock-vllm: setup ## The same for requirements-vllm.lock: requirements.lock and vLLM.
	$(BIN)/uv pip compile requirements.lock requirements-vllm.in --override requirements-vllm-overrides.txt --python-version 3.11 $(FIND_LINKS) \
	  --no-header --no-annotate --quiet | sed -E 's/\+cpu$$//' > requirements-vllm.lock.new && mv requirements-vllm.lock.new requirements-vllm.lock

clean:           ## Remove the environment and caches; keeps .ft (your store). `rm -r .ft` forgets everything.
	rm -rf $(VENV) $(EXPORT) $(VLLM) .pytest_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
