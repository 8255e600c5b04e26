#!/usr/bin/env bash
# sglang.sh VERSION: prints the folder of another supported SGLang, for PYTHONPATH. The cache gets it if it has none.
set -euo pipefail
cd "$(dirname "$0")/../.."
lock="requirements/sglang-${1:?which version?}.txt"
[ -e "$lock" ] || { echo "sglang.sh: error: there is no $lock: another supported version has one" >&2; exit 1; }
. tests/setup/environments.sh
folder_beside "sglang-$1" "$lock"
