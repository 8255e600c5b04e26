#!/usr/bin/env bash
# plugin.sh: builds `kubectl aurora` as one file, in build/plugin.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/environments.sh
tools="$(shared_environment plugin requirements/plugin.txt)"
flock -u 9
out=build/plugin
rm -rf "$out"
# From the wheel, not from the checkout: a file that the wheel lacks is missing here too.
"$uv" build -q --wheel --build-constraints requirements/build.txt --python "$tools/bin/python" -o "$out/wheel"
"$uv" pip install -q --no-deps --python "$tools/bin/python" --target "$out/packages" "$out"/wheel/*.whl
exec "$tools/bin/python" -m tests.plugin "$out/packages" --to "$out"
