#!/usr/bin/env bash
# Recompile the lock files. cpu.txt leaves out SGLang's GPU kernels (cpu.overrides.txt), which its CPU device never imports.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv="${AURORA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aurora}/bootstrap/bin/uv"
compile() { "$uv" pip compile pyproject.toml -q --no-header --no-annotate --python-version 3.11 "$@"; }
compile --extra operator --extra agent -o requirements/light.txt
compile --extra operator -o requirements/operator.txt
compile --extra agent -o requirements/agent.txt
compile --extra runtime --extra operator --group dev --overrides requirements/cpu.overrides.txt -o requirements/cpu.txt
