"""The signals that ask a process of the demo to end: SIGTERM, and SIGHUP, which a terminal sends when it closes.

Why: without a handler both would end the process at once and leave its programs and its cluster running. Invariant: a
signal that was ignored when the process began stays ignored, as ``nohup`` wants.

Only the standard library is imported, because start.py runs before the packages are installed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def on_stop_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Call `handler` for each of the stop signals that is not ignored."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def exit_on_stop_signals() -> None:
    """Turn the first stop signal into an ordinary exit, with 128 + its number as the status.

    Later ones are ignored: they would interrupt the clean-up. A closed terminal sends SIGHUP more than once.
    """

    def leave(number: int, _: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    on_stop_signals(leave)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and the stop signals for the time of the block, in programs that the block starts too."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *STOP_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
