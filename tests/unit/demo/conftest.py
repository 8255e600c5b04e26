"""Fixtures of the demo's tests.

Invariant: these tests interrupt processes, so SIGINT and SIGHUP must interrupt. A shell starts a job in the background
with SIGINT ignored, nohup with SIGHUP ignored, and all children inherit this.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT raises :class:`KeyboardInterrupt`, and SIGHUP ends a process, however the tests were started."""
    handlers: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)
