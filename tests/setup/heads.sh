#!/usr/bin/env bash
# heads.sh: prints the folder of the libraries that save and load EAGLE-3 heads, for PYTHONPATH. The cache gets it if it
# has none.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/environments.sh
folder_beside heads requirements/heads.txt
