"""Builds a program for tests from a small Go module of its own, once per machine.

A module here names one program with its ``tool`` directive, and its go.sum pins everything that the program is built
from. Invariant: a program in the cache is complete, because it gets its name after it is linked.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Final

from tests.assets.cache import cache_root
from tests.cluster.command import print_progress, run
from tests.cluster.file_lock import exclusive_lock
from tests.cluster.local.build import find_go

BUILD_TIMEOUT_SECONDS: Final = 1800


def built_tool(module: Path) -> Path:
    """The program of ``module``. The first call builds it. Several processes may call this at once.

    Raises:
        CommandError: The program could not be built. The message has the output of Go.
    """
    digest = hashlib.sha256(b"".join((module / name).read_bytes() for name in ("go.mod", "go.sum"))).hexdigest()[:16]
    program = cache_root() / "go-tools" / f"{module.name}-{digest}"
    program.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(program.with_suffix(".lock")):
        if not program.exists():
            _build(module, program)
    return program


def _build(module: Path, program: Path) -> None:
    print_progress(f"building {module.name}: once per machine")
    go_cache, unfinished = program.with_suffix(".go-build"), program.with_suffix(".unfinished")
    variables = {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
        "GOCACHE": str(go_cache),
    }
    flags = ("-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", unfinished)
    run(find_go(), "build", *flags, "tool", env=variables, cwd=module, timeout_seconds=BUILD_TIMEOUT_SECONDS)
    unfinished.rename(program)
    shutil.rmtree(go_cache, ignore_errors=True)
