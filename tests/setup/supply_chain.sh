#!/usr/bin/env bash
# supply_chain.sh sbom | audit: run the checks of tests/supply_chain with their locked tools.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/environments.sh
tools="$(shared_environment supply-chain requirements/supply-chain.txt)"
flock -u 9
exec .venv/bin/python -m tests.supply_chain "$1" --tools "$tools/bin"
