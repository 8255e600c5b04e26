# `make demo` and `make test` are the README's two commands. `make check` is the fast check while you develop.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
SYSTEM_PYTHON := $(or $(PYTHON),python3)
export PYTHONPATH :=
export HF_HUB_OFFLINE := 1
export TQDM_DISABLE := 1

.PHONY: help env check format test test-slow test-gpu e2e-faults e2e-upgrade e2e-isolation e2e-attacks demo generated lock audit images plugin clean
.PHONY: static unit engine operator data e2e kubernetes model

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

env: ## Install Python packages in the cache, and a thin .venv in this checkout
	@tests/setup/python.sh

check: static unit ## Fast checks: format, lint, types, import rules, generated files, helm lint, unit tests

static: env
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command as run; run()"
	$(PY) -m aurora_api.crd --check
	$(PY) -m tests.generated --check
	$(PY) -m tests.cluster helm lint --strict charts/aurora-operator --values charts/aurora-operator/ci/images-values.yaml

format: env ## Format the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# Three parts at a time on two cores, because the operator's tests mostly wait.
PARTS := unit engine operator data
test: static ## All tests of CI: unit tests, real S3, SGLang and API server, and the loop on a real cluster
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target $(PARTS)
	@$(MAKE) --no-print-directory e2e

# A file's tests stay together, because they share what is slow to set up. AURORA_ALL_EXAMPLES=1 asks for every example
# of the property tests instead of a quarter.
unit: env
	$(PY) -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile tests/unit

engine: env
	$(PY) -m pytest -q tests/integration/engine

operator: env
	$(PY) -m pytest -q tests/integration/operator tests/integration/installations tests/integration/chart

data: env
	$(PY) -m pytest -q tests/integration/training tests/integration/store

e2e: env
	$(PY) -m pytest -q tests/e2e

# Suites for one area each. `sglang` takes another supported version: make test-slow SUITE=sglang VERSION=0.5.22
SUITE := ecosystem gitops gpu heads plugin replica sglang targets trained
VERSION := 0.5.22
test-slow: $(addprefix slow-,$(SUITE)) ## Tests of one area each; SUITE="replica heads" chooses (see CONTRIBUTING.md)

slow-%: env
	$(PY) -m pytest -q -s tests/integration/$*

slow-heads: env
	site="$$(tests/setup/heads.sh)" && PYTHONPATH="$$site" $(PY) -m pytest -q tests/integration/heads

slow-plugin: env plugin
	$(PY) -m pytest -q tests/integration/plugin

SGLANG_TESTS := tests/unit/engine/test_installed_sglang.py tests/unit/serving/test_refused_requests.py \
	tests/integration/engine tests/integration/targets
slow-sglang: env
	site="$$(tests/setup/sglang.sh $(VERSION))" && PYTHONPATH="$$site" $(PY) -m pytest -q $(SGLANG_TESTS)

# The kernel and training need torch only, so nothing is installed here. Serving follows where SGLang is installed.
test-gpu: ## Measure the kernel, training and serving on a GPU (see docs/how-to/gpu.md)
	$(if $(wildcard $(PY)),$(PY),$(SYSTEM_PYTHON)) -m tests.bench.gpu

e2e-faults: env ## Test every fault in every state of a rollout, on a real cluster under traffic (two hours)
	$(PY) -m pytest -q -s tests/faults

e2e-upgrade: env ## Test upgrade and rollback of the chart from the former version, on a real cluster under traffic (30 minutes)
	$(PY) -m pytest -q -s tests/upgrade

e2e-isolation: env ## Attack the operator from other resources, stores and releases, on a real cluster (half an hour)
	$(PY) -m pytest -q -s tests/isolation

e2e-attacks: env ## Attack one speculator as a client, bucket writer, author and container, on a real cluster (half an hour)
	$(PY) -m pytest -q -s tests/attacks

# Kubernetes is built from source while the packages and the model are installed. Both are cached.
demo: ## Run the whole loop on a real cluster: serve, trace, train, measure, swap
	@$(SYSTEM_PYTHON) -m tests.demo.machine_check
	@$(SYSTEM_PYTHON) -m tests.cluster prerequisites
	@$(MAKE) --no-print-directory --jobs 2 kubernetes model
	@$(PY) -m tests.demo

kubernetes:
	@mkdir -p build/demo && echo "Kubernetes: from source the first time, in 8 to 20 minutes (build/demo/kubernetes.log)"
	@$(SYSTEM_PYTHON) -m tests.cluster build >build/demo/kubernetes.log 2>&1 || { tail -5 build/demo/kubernetes.log; false; }

model: env
	@$(PY) -m tests.assets.model >/dev/null

generated: env ## Generate the CRD, the resource's page, the dashboard, the metrics' page and the kustomize base
	$(PY) -m aurora_api.crd
	$(PY) -m tests.generated
	$(PY) -m tests.generated.kustomize_base

lock: env ## Compile the lock files from pyproject.toml
	@tests/setup/lock.sh

audit: env ## Write bills of materials and licences to build/sbom, and look for known vulnerabilities (asks the registry)
	@tests/setup/supply_chain.sh sbom
	@tests/setup/supply_chain.sh audit

images: env ## Build the operator and agent images with buildah, without a registry
	$(PY) -m tests.rig.buildah

# Not after env: the plugin is built in a small environment of its own.
plugin: ## Build kubectl-aurora as one file, in build/plugin
	@tests/setup/plugin.sh

clean: ## Remove .venv, build and tool caches of this checkout (the shared cache stays, see AURORA_CACHE)
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
