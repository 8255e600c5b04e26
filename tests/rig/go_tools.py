"""Builds programs for tests from small Go modules of their own, once per machine.

A module here names its programs with ``tool`` directives, and its go.sum pins everything that they are built from. A
program may be the module's own. The sources of other modules, which are not built, come from the same cache.
Invariant: a program in the cache is complete, because it gets its name after it is linked.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Final

from tests.assets.cache import cache_root
from tests.cluster.command import print_progress, run
from tests.cluster.file_lock import exclusive_lock
from tests.cluster.local.build import find_go

BUILD_TIMEOUT_SECONDS: Final = 1800
DOWNLOAD_TIMEOUT_SECONDS: Final = 300
_ENVIRONMENT: Final = {"GOTOOLCHAIN": "local", "GOWORK": "off", "GOMODCACHE": str(cache_root() / "go-modules")}


def module_sources(path: str, version: str) -> Path:
    """The folder of a Go module, which is downloaded once, into the cache.

    Raises:
        CommandError: The module could not be downloaded.
    """
    answer = run(
        *(find_go(), "mod", "download", "-json", f"{path}@{version}"),
        env=_ENVIRONMENT | {"GOFLAGS": "-modcacherw"},
        cwd=Path("/"),
        timeout_seconds=DOWNLOAD_TIMEOUT_SECONDS,
        downloads=True,
    )
    return Path(json.loads(answer)["Dir"])


def built_tool(module: Path, name: str = "", tags: str = "") -> Path:
    """One program of ``module``. The first call builds all of them. Several processes may call this at once.

    Args:
        name: The program. Default: the one that is named like the module's folder.
        tags: Go's build tags, with commas between them.

    Raises:
        CommandError: The programs could not be built. The message has the output of Go.
    """
    files = [module / "go.mod", module / "go.sum", *sorted(module.rglob("*.go"))]
    sources = b"".join(file.read_bytes() for file in files)
    digest = hashlib.sha256(sources + tags.encode()).hexdigest()[:16]
    folder = cache_root() / "go-tools"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"{name or module.name}-{digest}"
    with exclusive_lock(folder / f"{module.name}-{digest}.lock"):
        if not program.exists():
            _build(module, folder, digest, tags)
    return program


def _build(module: Path, folder: Path, digest: str, tags: str) -> None:
    print_progress(f"building {module.name}: once per machine")
    go_cache, unfinished = (folder / f"{module.name}-{digest}.{end}" for end in ("go-build", "unfinished"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    variables = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -modcacherw", "GOCACHE": str(go_cache)}
    flags = ("-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", "-s -w", "-o", f"{unfinished}/")
    run(
        find_go(),
        "build",
        *flags,
        "tool",
        env=_ENVIRONMENT | variables,
        cwd=module,
        timeout_seconds=BUILD_TIMEOUT_SECONDS,
        downloads=True,
    )
    for built in unfinished.iterdir():
        built.rename(folder / f"{built.name}-{digest}")
    unfinished.rmdir()
    shutil.rmtree(go_cache, ignore_errors=True)
