"""The deadline of several calls of the store together, and whether somebody still waits for their answers.

Why: a caller has one deadline for all that it does. boto3 knows only the timeout of one connection.

Invariant: no request begins, and no further block of an object is read, once the deadline is over or nobody waits. A
request under way ends with boto3's own timeout.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from aurora_store.errors import StoreInterrupted


def _never() -> bool:
    return False


_end_seconds: ContextVar[float] = ContextVar("end_seconds", default=math.inf)
_interrupted: ContextVar[Callable[[], bool]] = ContextVar("interrupted", default=_never)


@contextmanager
def total_deadline(seconds: float) -> Iterator[None]:
    """End all calls inside the context within ``seconds`` together. A deadline around it is kept if it is earlier."""
    token = _end_seconds.set(min(_end_seconds.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _end_seconds.reset(token)


@contextmanager
def interruptible(interrupted: Callable[[], bool]) -> Iterator[None]:
    """End the calls inside the context soon after ``interrupted`` returns true. It is called often."""
    token = _interrupted.set(interrupted)
    try:
        yield
    finally:
        _interrupted.reset(token)


def total_seconds_left() -> float:
    """Seconds until the deadline around the present work. Infinite without one."""
    return _end_seconds.get() - time.monotonic()


def is_interrupted() -> bool:
    """Whether nobody waits for the present work any more."""
    return _interrupted.get()()


def raise_if_over() -> None:
    """Raise :class:`StoreInterrupted` when the deadline is over, or when nobody waits any more."""
    if is_interrupted():
        raise StoreInterrupted("nobody waits for the answer any more")
    if total_seconds_left() <= 0:
        raise StoreInterrupted("no complete answer in time; check that the store answers")
