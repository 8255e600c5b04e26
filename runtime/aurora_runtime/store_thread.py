"""Makes slow calls, mostly of the store, in a thread, so that signals, leases and probes do not wait.

Invariant: a thread that calls the store ends soon after nobody wants its answer any more. asyncio joins its threads
when the program ends, so a slow store would otherwise hold the exit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from aurora_store.deadline import interruptible

T = TypeVar("T")


def _never() -> bool:
    return False


async def call_in_thread(function: Callable[[], T], given_up: Callable[[], bool] = _never) -> T:
    """Call ``function`` in a thread, and return its result or raise its error.

    The store's calls in it end, with :class:`StoreInterrupted`, soon after ``given_up`` returns true or this coroutine
    is cancelled. Other slow calls in it must ask :func:`~aurora_store.deadline.is_interrupted` themselves.
    The thread calls ``given_up`` often.
    """
    cancelled = threading.Event()

    def run() -> T:
        with interruptible(lambda: cancelled.is_set() or given_up()):
            return function()

    try:
        return await asyncio.to_thread(run)
    except asyncio.CancelledError:
        cancelled.set()
        raise


async def finish_in_thread(function: Callable[[], T]) -> T:
    """Call ``function`` in a thread to its end, and return its result or raise its error.

    A cancelled caller waits for the end too. So a caller that holds a lock keeps it until a write to the disk is over,
    and the next writer comes second.
    """
    call = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
