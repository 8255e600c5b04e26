#!/usr/bin/env bash
# sglang.sh VERSION: prints the folder of another supported SGLang, for PYTHONPATH. SGLang is installed into the cache if
# the cache does not have it yet, without its dependencies: they are those of the locked version.
set -euo pipefail
cd "$(dirname "$0")/../.."
lock="requirements/sglang-${1:?which version?}.txt"
[ -e "$lock" ] || { echo "sglang.sh: error: there is no $lock: another supported version has one" >&2; exit 1; }
. tests/setup/environments.sh

target="$cache/sglang-$1-$(sha256sum <"$lock" | cut -c1-12)"
if [ ! -e "$target/.complete" ]; then
  log "setup: installing SGLang $1 into the cache (once per machine)"
  rm -rf "$target"
  "$uv" pip install -q --no-deps --require-hashes --compile-bytecode --python "$interpreter" --target "$target" -r "$lock"
  touch "$target/.complete"
fi
printf '%s' "$target"
