# The README's two commands are `make demo` and `make test`; `make check` is the fast loop.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
export PYTHONPATH :=
export HF_HUB_OFFLINE := 1
export TQDM_DISABLE := 1

.PHONY: help env check format test unit integration e2e e2e-faults demo bench crd lock images clean

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: ## Install Python packages into the cache and a thin .venv here
	@tests/setup/python.sh

check: env ## Format, lint, types, import contracts, unit tests, CRD drift, helm lint: the fast loop
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command as run; run()"
	$(PY) -m aurora_api.crd --check
	$(PY) -m tests.cluster helm lint --strict charts/aurora-operator
	$(PY) -m pytest -q tests/unit

format: env ## Format the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

unit: env ## Unit tests
	$(PY) -m pytest -q tests/unit

integration: env ## Real S3, real SGLang on CPU, real API server
	$(PY) -m pytest -q tests/integration tests/cluster

e2e: env ## The whole loop on a real cluster
	$(PY) -m pytest -q tests/e2e

e2e-faults: env ## Every fault at every moment of a draft's life on a real cluster under traffic, measured: two hours
	$(PY) -m pytest -q -s tests/faults

test: check integration e2e ## Everything

demo: env ## The main job end to end on a real cluster: apply, serve, trace, train, measure, swap
	$(PY) -m tests.demo

bench: env ## What steps, rounds, capture and training cost, that swaps and kills change nothing, what learning is worth
	$(PY) -m tests.bench.engine
	$(PY) -m tests.bench.capture
	$(PY) -m tests.bench.equality
	$(PY) -m tests.bench.trainer
	$(PY) -m tests.bench.kills
	$(PY) -m tests.bench.learning
	$(PY) -m tests.bench.learning.served
	$(PY) -m tests.bench.learning.shift
	$(PY) -m tests.bench.coverage
	$(PY) -m tests.bench.vocabulary
	$(PY) -m tests.bench.served
	$(PY) -m tests.bench.served.shift

crd: env ## Regenerate the CRD from the models
	$(PY) -m aurora_api.crd

lock: env ## Recompile the lock files from pyproject.toml
	@tests/setup/lock.sh

images: env ## Build the Dockerfile's targets with buildah against a local base image
	$(PY) -m tests.rig.buildah

clean: ## Remove what this checkout made (the cache stays: AURORA_CACHE)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
