"""Lets a pod use a Python environment of this machine, by mounting the environment at its own paths.

This serves environments that are too large for an image, such as the one with torch and SGLang.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from tests.cluster.images.python_environment import inspect_environment

_SYSTEM_PATHS = ("/usr", "/lib", "/lib64", "/etc/ssl", "/etc/alternatives", "/etc/ld.so.cache")
"""Programs and libraries, certificates, and the files that the loader and the links in /usr/bin need."""


def host_python_volumes(venv: Path, *extra_paths: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A pod's `volumes` and a container's `volumeMounts` that let the container run the Python of `venv`.

    All mounts are read-only. No path is mounted twice, and no path is mounted below another mount.

    Args:
        extra_paths: Files or directories to mount at their own paths, such as a checkout that the environment links to.
    """
    environment = inspect_environment(venv)
    paths = [Path(path) for path in _SYSTEM_PATHS if Path(path).exists()]
    paths += [environment.prefix, environment.base_prefix, *environment.stdlib]
    paths += [program.parent for program in environment.executable_chain()]
    paths += [_environment_of(path) for path in environment.linked]
    paths += [path.absolute() for path in extra_paths]
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
