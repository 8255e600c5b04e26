"""Limits how many reconciles hold objects and compute at a time.

Why: after a start all speculators are reconciled. Without a limit, one turn of the event loop would compute for all of
them, and each would hold its children in memory.

Invariant: a reconcile that waits for a store or for agents holds up nobody. It gives its slot back after
:data:`PATIENCE_SECONDS`, and goes on once it has a slot again. The API server is shared by all, so waiting for it keeps
the slot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
MAX_RECONCILES = 12
"""Slots. More take more memory and start a thousand speculators no sooner (``docs/results/operator-scale.md``)."""
PATIENCE_SECONDS = 0.5
"""A store nearby answers sooner."""


class ReconcileSlots:
    """The slots that all loops of a process share."""

    def __init__(self, slots: int = MAX_RECONCILES, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._free, self.patience_seconds = asyncio.Semaphore(slots), patience_seconds

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for the block, except in :func:`outside`."""
        slot = _Slot(self._free, self.patience_seconds)
        await slot.acquire()
        token = _current.set(slot)
        try:
            yield
        finally:
            _current.reset(token)
            slot.release()


class _Slot:
    def __init__(self, free: asyncio.Semaphore, patience_seconds: float) -> None:
        self._free, self.patience_seconds = free, patience_seconds
        self._held = False

    async def acquire(self) -> None:
        await self._free.acquire()
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._free.release()


_current: ContextVar[_Slot | None] = ContextVar("slot", default=None)


async def outside(work: Coroutine[Any, Any, T]) -> T:
    """Wait for ``work``, which waits for a store or for agents, and lend this reconcile's slot to others meanwhile."""
    slot = _current.get()
    if slot is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=slot.patience_seconds)
        if not task.done():
            slot.release()
            await asyncio.wait({task})
            await slot.acquire()
    except asyncio.CancelledError:
        task.cancel()
        raise
    return task.result()
