"""SIGTERM and SIGHUP end the demo as Ctrl-C does, so that it removes its cluster.

Invariant: a signal that was ignored when the process began stays ignored, as ``nohup`` wants.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def exit_on_stop_signals() -> None:
    """Turn the first stop signal into an ordinary exit, with 128 + its number as the status. Later ones are ignored."""

    def leave(number: int, _: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and the stop signals for the time of the block, in programs that the block starts too."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *STOP_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
