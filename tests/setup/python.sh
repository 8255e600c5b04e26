#!/usr/bin/env bash
# Prepare Python for this checkout. The cache holds one shared environment per lock file. A thin `.venv` in this checkout
# adds the checkout's packages to it. Several checkouts share gigabytes this way, and none sees another's code.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache="${AURORA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aurora}"
python="${PYTHON:-python3}"
mkdir -p "$cache"
umask 022

log() { printf '%s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  { log "setup: error: this project needs Python 3.11 (for SGLang's wheel and the lock files): set PYTHON=/path/to/python3.11"; exit 1; }

exec 9>"$cache/.setup.lock"
flock 9

uv="$cache/bootstrap/bin/uv"
if [ ! -x "$uv" ]; then
  log "setup: installing uv"
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
      { log "setup: error: this Python has no ensurepip: install the package python3-venv"; exit 1; }
    apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
  fi
  rm -rf "$cache/bootstrap"
  "$python" -m venv "$cache/bootstrap"
  "$cache/bootstrap/bin/pip" install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
fi

interpreter="$("$python" -c 'import os, sys; print(os.path.realpath(sys._base_executable))')"

# shared_environment NAME LOCKFILE: prints the directory of the environment with exactly the packages of LOCKFILE. The
# environment is installed if the cache has none yet. Its key has the versions, and the hashes are checked as it is
# installed.
shared_environment() {
  local key target
  key="$( (sed '/^ *--hash/d; s/ \\$//' "$2"; "$interpreter" -VV; echo "$interpreter") | sha256sum | cut -c1-12)"
  target="$cache/python-$1-$key"
  if [ ! -e "$target/.complete" ]; then
    log "setup: installing the packages of $2 into the cache (once per machine)"
    rm -rf "$target"
    "$uv" venv -q --python "$interpreter" "$target"
    # Compile all modules now. Pods mount the environment read-only and would compile a million lines at every start.
    "$uv" pip install -q --no-deps --require-hashes --compile-bytecode --python "$target/bin/python" -r "$2"
    touch "$target/.complete"
  fi
  printf '%s' "$target"
}

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
