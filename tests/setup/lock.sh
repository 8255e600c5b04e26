#!/usr/bin/env bash
# Recompile the lock files. cpu.txt leaves out SGLang's GPU kernels (cpu.overrides.txt), which its CPU device never imports.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv="${AURORA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aurora}/bootstrap/bin/uv"
compile() { "$uv" pip compile -q --no-header --no-annotate --python-version 3.11 pyproject.toml "$@"; }
compile --extra operator --extra agent -o requirements/light.txt
compile --extra operator -o requirements/operator.txt
compile --extra agent -o requirements/agent.txt
compile --extra runtime --constraints requirements/runtime.constraints.txt -o requirements/runtime.txt
compile requirements/cpu.in --extra runtime --extra operator --group dev --overrides requirements/cpu.overrides.txt -o requirements/cpu.txt
