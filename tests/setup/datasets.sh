#!/usr/bin/env bash
# datasets.sh: prints the folder of the public sets of requests that benches read, for PYTHONPATH. The cache gets it if it
# has none.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/environments.sh
folder_beside datasets requirements/datasets.txt
