# Sourced by the scripts beside it, in the root of the checkout: the cache's environments, one for each lock file.
cache="${AURORA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/aurora}"
python="${PYTHON:-python3}"
umask 022

log() { printf '%s\n' "$*" >&2; }

[ "$(uname -s)" = Linux ] || { log "setup: error: tests and demo need Linux (namespaces, control groups)"; exit 1; }
mkdir -p "$cache"

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  { log "setup: error: this project needs Python 3.11 (for SGLang's wheel and the lock files): set PYTHON=/path/to/python3.11"; exit 1; }

exec 9>"$cache/.setup.lock"
flock 9

uv="$cache/bootstrap/bin/uv"
bootstrap="$(sha256sum <requirements/bootstrap.txt)"
if [ "$(cat "$cache/bootstrap/stamp" 2>/dev/null)" != "$bootstrap" ]; then
  log "setup: installing uv"
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
      { log "setup: error: this Python has no ensurepip: install the package python3.11-venv"; exit 1; }
    apt="apt-get -qq -o DPkg::Lock::Timeout=300"
    $apt update && $apt install -y --no-install-recommends python3.11-venv >/dev/null
  fi
  rm -rf "$cache/bootstrap"
  "$python" -m venv "$cache/bootstrap"
  "$cache/bootstrap/bin/pip" install -q --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
  echo "$bootstrap" >"$cache/bootstrap/stamp"
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

# folder_beside NAME LOCKFILE: prints a folder with the packages of LOCKFILE, for PYTHONPATH. It has none of their
# dependencies, which are those of the locked environment. The folder is installed if the cache has none yet.
folder_beside() {
  local target
  target="$cache/$1-$(sha256sum <"$2" | cut -c1-12)"
  if [ ! -e "$target/.complete" ]; then
    log "setup: installing the packages of $2 into the cache (once per machine)"
    rm -rf "$target"
    "$uv" pip install -q --no-deps --require-hashes --compile-bytecode --python "$interpreter" --target "$target" -r "$2"
    touch "$target/.complete"
  fi
  printf '%s' "$target"
}
