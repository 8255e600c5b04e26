"""A real OCI registry on this machine's loopback: the one of go-containerregistry, which keeps everything in memory.

Invariant: when the context ends, the process is gone, and with it all that was pushed.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.cluster.command import wait_until
from tests.rig.go_tools import built_tool

MODULE: Final = Path(__file__).parent / "registry"
START_TIMEOUT_SECONDS: Final = 30.0
STOP_TIMEOUT_SECONDS: Final = 10.0
_LISTENS: Final = re.compile(r"serving on port (\d+)")


@contextlib.contextmanager
def oci_registry() -> Iterator[str]:
    """Run a registry until the context ends. Returns its host and port, which speak HTTP without TLS.

    Raises:
        NotReadyError: The registry does not listen within 30 s. The message has its log.
    """
    with tempfile.TemporaryDirectory(prefix="aurora-registry-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen([built_tool(MODULE), "-port", "0"], stderr=sink)
        try:
            wait_until("the registry", lambda: bool(_ports(log)), START_TIMEOUT_SECONDS, log.read_text)
            yield f"localhost:{_ports(log)[0]}"
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_SECONDS)


def _ports(log: Path) -> list[str]:
    """The port that the kernel chose, once the registry has logged it."""
    return _LISTENS.findall(log.read_text())
