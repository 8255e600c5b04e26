"""Fixtures of the demo's tests.

Invariant: these tests interrupt processes, so SIGINT must interrupt. A shell starts a job in the background with SIGINT
ignored, and all its children inherit this.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT raises :class:`KeyboardInterrupt`, however the tests were started."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)
