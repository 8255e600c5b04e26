#!/usr/bin/env bash
# Prepare Python for this checkout. The cache holds one shared environment per lock file. A thin `.venv` in this checkout
# adds the checkout's packages to it. Several checkouts share gigabytes this way, and none sees another's code.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup/environments.sh

base="$(shared_environment cpu requirements/cpu.txt)"
light="$(shared_environment light requirements/light.txt)"

# Entry points are written when the package is installed, so a changed pyproject.toml needs a new .venv.
stamp="$base $(sha256sum <pyproject.toml)"
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
  rm -rf .venv
  "$uv" venv -q --python "$interpreter" .venv
  echo "$base/lib/python3.11/site-packages" >.venv/lib/python3.11/site-packages/_shared.pth
  for tool in ruff weed; do ln -sf "$base/bin/$tool" ".venv/bin/$tool"; done
  sed "s|$base/bin/|$PWD/.venv/bin/|" "$base/bin/sglang" >.venv/bin/sglang
  chmod +x .venv/bin/sglang
  "$uv" pip install -q --no-deps --build-constraints requirements/build.txt --python .venv/bin/python -e .
  echo "$light" >.venv/light
  echo "$base" >.venv/base
  echo "$stamp" >.venv/stamp
fi
