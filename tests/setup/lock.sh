#!/usr/bin/env bash
# Compile the lock files, with the hash of each package. cpu.txt omits SGLang's GPU kernels (see cpu.overrides.txt): its
# CPU device never imports them.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv="${AURORA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aurora}/bootstrap/bin/uv"
compile() { "$uv" pip compile -q --generate-hashes --no-header --no-annotate --python-version 3.11 "$@"; }
compile requirements/bootstrap.in -o requirements/bootstrap.txt
compile requirements/build.in -o requirements/build.txt
compile requirements/heads.in --no-deps -o requirements/heads.txt
compile requirements/datasets.in --no-deps -o requirements/datasets.txt
compile --group supply-chain -o requirements/supply-chain.txt
compile pyproject.toml --extra operator --extra agent -o requirements/light.txt
compile pyproject.toml --extra operator -o requirements/operator.txt
compile pyproject.toml --extra agent -o requirements/agent.txt
compile pyproject.toml --extra runtime --constraints requirements/runtime.constraints.txt -o requirements/runtime.txt
compile pyproject.toml requirements/cpu.in --extra runtime --extra operator --extra report --group dev --overrides requirements/cpu.overrides.txt -o requirements/cpu.txt
# The plugin's program has the versions that the tests have.
compile pyproject.toml --extra cli --group plugin --constraints requirements/cpu.txt -o requirements/plugin.txt
