#!/usr/bin/env bash
# Compile the lock files. cpu.txt omits SGLang's GPU kernels (see cpu.overrides.txt): its CPU device never imports them.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv="${AURORA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aurora}/bootstrap/bin/uv"
compile() { "$uv" pip compile -q --no-header --no-annotate --python-version 3.11 pyproject.toml "$@"; }
compile --extra operator --extra agent -o requirements/light.txt
compile --extra operator -o requirements/operator.txt
compile --extra agent -o requirements/agent.txt
compile --extra runtime --constraints requirements/runtime.constraints.txt -o requirements/runtime.txt
compile requirements/cpu.in --extra runtime --extra operator --group dev --overrides requirements/cpu.overrides.txt -o requirements/cpu.txt
