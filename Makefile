# `make demo` and `make test` are the README's two commands. `make check` is the fast check while you develop.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
export PYTHONPATH :=
export HF_HUB_OFFLINE := 1
export TQDM_DISABLE := 1

.PHONY: help env browser check static format test unit unit-thorough integration integration-operator integration-engine integration-data integration-replica integration-targets integration-trees integration-heads integration-sglang integration-release integration-keda integration-gpu integration-plugin e2e e2e-faults e2e-upgrade e2e-isolation e2e-attacks demo kubernetes model gpu crd generated lock sbom audit images plugin clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: ## Install Python packages in the cache, and a thin .venv in this checkout
	@tests/setup/python.sh

browser: env ## Install a headless Chromium where apt-get may, for the tests of the report's page
	@$(PY) -m tests.assets.chromium

check: static unit ## Fast checks: format, lint, types, import rules, generated CRD, helm lint, unit tests

static: env ## The fast checks without the unit tests
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

# A file's tests stay together, because they share what is slow to set up.
UNIT = -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile tests/unit

unit: env ## Unit tests, with a quarter of the examples of the property tests
	$(PY) $(UNIT)

unit-thorough: env ## Unit tests with every example of the property tests (minutes)
	AURORA_ALL_EXAMPLES=1 $(PY) $(UNIT)

# Three targets at a time on two cores, because the operator's tests mostly wait.
THREE_AT_A_TIME = $(MAKE) --no-print-directory --jobs 3 --output-sync=target
INTEGRATION = integration-engine integration-operator integration-data

integration: env ## Tests against a real S3, SGLang on CPU and an API server
	@$(THREE_AT_A_TIME) $(INTEGRATION)

integration-engine: env
	$(PY) -m pytest -q tests/integration/engine

integration-operator: env
	$(PY) -m pytest -q tests/integration/operator tests/integration/installations tests/integration/chart

integration-data: env
	$(PY) -m pytest -q tests/integration/training tests/integration/store

integration-replica: env ## Measure on a real replica, in every mode, with validator and agent killed (10 minutes)
	$(PY) -m pytest -q tests/integration/replica

integration-targets: env ## Serve tiny targets of several families, and published heads, on a real engine (20 minutes)
	$(PY) -m pytest -q -s tests/integration/targets

integration-trees: env ## Serve drafts that propose trees, and train on them, on a real engine (6 minutes)
	$(PY) -m pytest -q tests/integration/trees

integration-heads: env ## Import heads that speculators and SpecForge save, and load exported drafts in speculators (a minute)
	site="$$(tests/setup/heads.sh)" && PYTHONPATH="$$site" $(PY) -m pytest -q tests/integration/heads

integration-release: env ## Sign the chart in a registry, and verify it, with cosign (6 minutes, mostly to build cosign)
	$(PY) -m pytest -q tests/integration/release

integration-keda: env ## Let a real KEDA scale a speculator on a real cluster, with a real Prometheus (10 minutes, half of them to build KEDA)
	$(PY) -m pytest -q tests/integration/keda

integration-gpu: env ## Run the bench of `make gpu` on a CPU at toy sizes, kernels in Triton's interpreter (2 minutes)
	$(PY) -m pytest -q tests/integration/gpu

integration-plugin: env plugin ## Install the built plugin with krew, and run it with kubectl (minutes, mostly to build both)
	$(PY) -m pytest -q tests/integration/plugin

# `make integration-sglang VERSION=0.5.22`: the tests that depend on SGLang's version (docs/reference/sglang-versions.md).
SGLANG_TESTS = tests/unit/engine/test_installed_sglang.py tests/unit/serving/test_request_limits.py \
	tests/integration/engine tests/integration/trees/test_trees_served.py
integration-sglang: env ## Test the engine with another supported SGLang: VERSION=0.5.22 (20 minutes)
	site="$$(tests/setup/sglang.sh $(VERSION))" && PYTHONPATH="$$site" $(PY) -m pytest -q $(SGLANG_TESTS) tests/integration/targets

e2e: env ## Test the whole loop on a real cluster
	$(PY) -m pytest -q tests/e2e

e2e-faults: env ## Test every fault in every state of a rollout, on a real cluster under traffic (two hours)
	$(PY) -m pytest -q -s tests/faults

e2e-upgrade: env ## Test upgrade and rollback of the chart from the former version, on a real cluster under traffic (30 minutes)
	$(PY) -m pytest -q -s tests/upgrade

e2e-isolation: env ## Attack the operator from other resources, stores and releases, on a real cluster (half an hour)
	$(PY) -m pytest -q -s tests/isolation

e2e-attacks: env ## Attack one speculator as a client, bucket writer, author and container, on a real cluster (half an hour)
	$(PY) -m pytest -q -s tests/attacks

# The browser first: the targets below may use apt-get too.
test: static browser ## All tests but unit-thorough, integration-replica, integration-targets, integration-trees, integration-heads, integration-sglang, integration-release, integration-keda, integration-gpu, integration-plugin, e2e-faults, e2e-upgrade, e2e-isolation and e2e-attacks
	@$(THREE_AT_A_TIME) unit $(INTEGRATION)
	@$(MAKE) --no-print-directory e2e

# Kubernetes is built from source while the packages and the model are installed. Both are cached.
demo: ## Run the whole loop on a real cluster: serve, trace, train, measure, swap
	@$(or $(PYTHON),python3) -m tests.demo.machine_check
	@$(or $(PYTHON),python3) -m tests.cluster prerequisites
	@$(MAKE) --no-print-directory --jobs 2 kubernetes model
	@$(PY) -m tests.demo

kubernetes:
	@mkdir -p build/demo && echo "Kubernetes: from source the first time, in 8 to 20 minutes (build/demo/kubernetes.log)"
	@$(or $(PYTHON),python3) -m tests.cluster build >build/demo/kubernetes.log 2>&1 || { tail -5 build/demo/kubernetes.log; false; }

model: env
	@$(PY) -m tests.assets.model

# Kernels and training need torch only, so nothing is installed here. Serving follows where SGLang is installed.
gpu: ## Measure kernels, training and serving on a GPU (see docs/how-to/gpu.md)
	$(if $(wildcard $(PY)),$(PY),python3) -m tests.bench.gpu

crd: env ## Generate the CRD from the models
	$(PY) -m aurora_api.crd

generated: env ## Generate the dashboard, the kustomize base, and pages that follow from code and chart
	$(PY) -m tests.generated
	$(PY) -m tests.generated.kustomize_base

lock: env ## Compile the lock files from pyproject.toml
	@tests/setup/lock.sh

sbom: env ## Write a bill of materials of each image and a report of licences to build/sbom
	@tests/setup/supply_chain.sh sbom

audit: env ## Look for known vulnerabilities of the locked packages (asks the registry)
	@tests/setup/supply_chain.sh audit

images: env ## Build the operator and agent images with buildah, without a registry
	$(PY) -m tests.rig.buildah

# Not after env: the plugin is built in a small environment of its own.
plugin: ## Build kubectl-aurora as one file, with an archive and a manifest for krew, in build/plugin
	@tests/setup/plugin.sh

clean: ## Remove .venv, build and tool caches of this checkout (the shared cache stays, see AURORA_CACHE)
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
