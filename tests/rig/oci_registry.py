"""A real OCI registry on this machine's loopback: the one of go-containerregistry, which keeps everything in memory.

The program is built once per machine from the Go module in ``registry/``, whose go.sum pins it. The result is kept in
the cache under a hash of the module.

Invariant: when the context ends, the process is gone, and with it all that was pushed.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.assets.cache import cache_root
from tests.cluster.command import NotReadyError, run
from tests.cluster.file_lock import exclusive_lock
from tests.cluster.local.build import find_go

MODULE: Final = Path(__file__).parent / "registry"
BUILD_TIMEOUT_SECONDS: Final = 900
STOP_TIMEOUT_SECONDS: Final = 10
_LISTENS: Final = re.compile(r"serving on port (\d+)")


def registry_program() -> Path:
    """The built registry. The first call builds it. Several processes may call this at once."""
    digest = hashlib.sha256(b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum"))).hexdigest()[:16]
    program = cache_root() / "registry" / digest / "registry"
    program.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(program.with_suffix(".lock")):
        if not program.exists():
            unfinished = program.with_suffix(".unfinished")
            variables = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
            flags = ("-trimpath", "-buildvcs=false", "-o", unfinished)
            run(find_go(), "build", *flags, "tool", env=variables, cwd=MODULE, timeout_seconds=BUILD_TIMEOUT_SECONDS)
            unfinished.rename(program)
    return program


@contextlib.contextmanager
def oci_registry() -> Iterator[str]:
    """Run a registry until the context ends. Returns its host and port, which speak HTTP without TLS.

    Raises:
        NotReadyError: The registry ended instead of listening.
    """
    process = subprocess.Popen([registry_program(), "-port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        yield f"localhost:{_port(process)}"
    finally:
        process.terminate()
        process.communicate(timeout=STOP_TIMEOUT_SECONDS)


def _port(process: subprocess.Popen[str]) -> int:
    """The port that the kernel chose, from the first line that the registry logs."""
    assert process.stderr is not None
    said = process.stderr.readline()
    found = _LISTENS.search(said)
    if found is None:
        raise NotReadyError(f"the registry does not listen: {said}")
    return int(found[1])
