"""Runs the agent, and starts it again when it ends: ``python -m aurora_runtime.serving.agent.supervisor serve``.

Kubernetes takes a pod out of its Service while any of its containers does not run. An agent that crashes must not do
that to a healthy engine, so the agent is a child of its container's first process.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from typing import Final

log = logging.getLogger(__name__)

AGENT: Final = (sys.executable, "-P", "-m", "aurora_runtime.serving.agent")
PAUSE_SECONDS: Final = 5.0


def supervise(command: Sequence[str], pause_seconds: float = PAUSE_SECONDS) -> int:
    """Keep ``command`` running until this process gets SIGTERM or SIGINT. Returns the command's last exit code."""
    stopping = threading.Event()
    process: subprocess.Popen[bytes] | None = None

    def stop(_number: int, _frame: types.FrameType | None) -> None:
        stopping.set()
        if process is not None:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while True:
        process = subprocess.Popen(command)
        if stopping.is_set():
            process.terminate()
        code = process.wait()
        if not stopping.is_set():
            log.error("the agent ended with exit code %d and starts again in %.0f s", code, pause_seconds)
        if stopping.wait(pause_seconds):
            return code


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return supervise([*AGENT, *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
