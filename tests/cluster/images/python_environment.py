"""Finds the files of a Python environment, by asking the environment's own interpreter, and lets a pod use them.

An environment that is too large for an image, such as the one with torch and SGLang, is mounted at its own paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.command import run

_SYSTEM_PATHS = ("/usr", "/lib", "/lib64", "/etc/ssl", "/etc/alternatives", "/etc/ld.so.cache")
"""Programs and libraries, certificates, and the files that the loader and the links in /usr/bin need."""
_PRINT_PATHS = """
import json, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps([sys.path, sys.prefix, sys.base_prefix, paths["stdlib"], paths["platstdlib"], paths["purelib"]]))
"""


@dataclass(frozen=True)
class PythonEnvironment:
    """An interpreter and its libraries."""

    executable: Path
    """The path by which the interpreter is called, often a link."""
    prefix: Path
    base_prefix: Path
    stdlib: tuple[Path, ...]
    site: Path
    linked: tuple[Path, ...]
    """Directories that .pth files of the environment name: a checkout, or an environment that several share."""

    @property
    def is_venv(self) -> bool:
        return self.prefix != self.base_prefix

    def executable_chain(self) -> list[Path]:
        """The chain of links from `executable` to the program itself, which is the last entry."""
        chain = [self.executable]
        while chain[-1].is_symlink():
            target = chain[-1].parent / chain[-1].readlink()
            chain.append(Path(os.path.normpath(target)))
        return chain


def inspect_environment(python: Path) -> PythonEnvironment:
    """Inspect `python`: an interpreter, or the directory of a virtual environment."""
    executable = python / "bin" / "python" if python.is_dir() else python
    answer = json.loads(run(executable, "-I", "-c", _PRINT_PATHS))
    prefix, base, stdlib, platform, site = (Path(path) for path in answer[1:])
    libraries = tuple(dict.fromkeys(_in_base(path, prefix, base) for path in (stdlib, platform)))
    search_path = [path for path in map(Path, answer[0]) if path.is_dir() and prefix != base]
    own = (prefix, *libraries)
    linked = tuple(path for path in search_path if not any(path.is_relative_to(directory) for directory in own))
    return PythonEnvironment(executable.absolute(), prefix, base, libraries, site, linked)


def _in_base(path: Path, prefix: Path, base: Path) -> Path:
    """The library's directory below the base interpreter.

    The interpreter of a virtual environment reports the platform's part of the library below the environment, where no
    such directory exists.
    """
    return base / path.relative_to(prefix) if path.is_relative_to(prefix) else path


def host_python_volumes(venv: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A pod's `volumes` and a container's `volumeMounts` that let the container run the Python of `venv`.

    All mounts are read-only. No path is mounted twice, and no path is mounted below another mount.
    """
    environment = inspect_environment(venv)
    paths = [Path(path) for path in _SYSTEM_PATHS if Path(path).exists()]
    paths += [environment.prefix, environment.base_prefix, *environment.stdlib]
    paths += [program.parent for program in environment.executable_chain()]
    paths += [_environment_of(path) for path in environment.linked]
    top_paths = [
        path
        for path in dict.fromkeys(paths)
        if not any(other != path and path.is_relative_to(other) for other in paths)
    ]
    volumes, mounts = [], []
    for path in top_paths:
        name = _volume_name(path)
        kind = "Directory" if path.is_dir() else "File"
        volumes.append({"name": name, "hostPath": {"path": str(path.resolve()), "type": kind}})
        mounts.append({"name": name, "mountPath": str(path), "readOnly": True})
    return volumes, mounts


def _environment_of(path: Path) -> Path:
    """The environment that a site directory belongs to. Links in `venv` may lead to the environment's programs too."""
    return next((parent for parent in path.parents if (parent / "pyvenv.cfg").exists()), path)


def _volume_name(path: Path) -> str:
    """A readable DNS label that is unique to the path."""
    words = re.sub(r"[^a-z0-9]+", "-", str(path).lower()).strip("-")[-40:].strip("-")
    return f"host-{words}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
