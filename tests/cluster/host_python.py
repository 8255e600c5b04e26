"""Running an environment of this machine inside a pod, by mounting it at its own paths.

For environments too large to put in an image, such as the one that holds torch and SGLang.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from tests.cluster.python import inspect

_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ssl", "/etc/alternatives", "/etc/ld.so.cache")
"""Programs and libraries, certificates, and what the loader and the links in /usr/bin go through."""


def host_python_volumes(venv: Path, *more: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The `volumes` of a pod and the `volumeMounts` of a container in which `venv`'s Python runs; all read-only.

    `more` are further files or directories to mount at their own paths, such as a checkout that the environment links
    to. No path is mounted twice, and none that another one already brings.
    """
    found = inspect(venv)
    wanted = [Path(path) for path in _SYSTEM if Path(path).exists()]
    wanted += [found.prefix, found.base_prefix, *found.stdlib]
    wanted += [program.parent for program in found.executables()]
    wanted += [_environment_of(path) for path in found.linked]
    wanted += [path.absolute() for path in more]
    tops = [
        path
        for path in dict.fromkeys(wanted)
        if not any(other != path and path.is_relative_to(other) for other in wanted)
    ]
    volumes, mounts = [], []
    for path in tops:
        name = _volume_name(path)
        kind = "Directory" if path.is_dir() else "File"
        volumes.append({"name": name, "hostPath": {"path": str(path.resolve()), "type": kind}})
        mounts.append({"name": name, "mountPath": str(path), "readOnly": True})
    return volumes, mounts


def _environment_of(path: Path) -> Path:
    """The environment that a site directory belongs to, because links in ours lead to its programs too."""
    return next((parent for parent in path.parents if (parent / "pyvenv.cfg").exists()), path)


def _volume_name(path: Path) -> str:
    """A DNS label that is readable and unique to the path."""
    words = re.sub(r"[^a-z0-9]+", "-", str(path).lower()).strip("-")[-40:].strip("-")
    return f"host-{words}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
