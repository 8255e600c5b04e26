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
import time
import types
from collections.abc import Sequence
from typing import Final

log = logging.getLogger(__name__)

AGENT: Final = (sys.executable, "-P", "-m", "aurora_runtime.serving.agent")
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
"""The pause before a start doubles up to this length. An agent that ran for longer is started at once again."""


class Supervisor:
    """Keeps one command running. Call :meth:`run` on the main thread."""

    def __init__(self, command: Sequence[str], first_pause_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        self._command, self._first_pause = command, first_pause_seconds
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run the command until this process gets SIGTERM or SIGINT. Returns the command's last exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        pause = self._first_pause
        while True:
            began = time.monotonic()
            self._process = subprocess.Popen(self._command)
            if self._stopping.is_set():
                self._process.terminate()
            code = self._process.wait()
            if time.monotonic() - began > LONGEST_PAUSE_SECONDS:
                pause = self._first_pause
            if not self._stopping.is_set():
                log.error("the agent ended with exit code %d and starts again in %.0f s", code, pause)
            if self._stopping.wait(0 if self._stopping.is_set() else pause):
                return code
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _stop(self, _number: int, _frame: types.FrameType | None) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return Supervisor([*AGENT, *(sys.argv[1:] if arguments is None else arguments)]).run()


if __name__ == "__main__":
    sys.exit(main())
