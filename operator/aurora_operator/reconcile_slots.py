"""Limits how many reconciles hold objects and compute at a time.

Why: after a start all speculators are reconciled. Without a limit, one turn of the event loop would compute for all of
them, and each would hold its children in memory.

Invariants: a reconcile that waits for a store or agents holds up nobody. It gives its slot back after
:data:`PATIENCE_SECONDS`, and goes on once it has a slot again. One that waits for the API server does so after
:data:`API_PATIENCE_SECONDS`, and as soon as for a store while the namespace is *slow*: its last call took longer than
that. A reconcile that ended holds no slot, even if a task that it started goes on. The reconciles of one namespace have
at most :data:`API_CALLS_PER_NAMESPACE` calls of the API server under way, so that an admission webhook that hangs in
one namespace leaves threads for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar, Token
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")
MAX_RECONCILES = 12
"""Slots. More take more memory and start a thousand speculators no sooner (``docs/results/operator-scale.md``)."""
API_CALLS_PER_NAMESPACE = MAX_RECONCILES
"""Quick calls keep their slots, so there are never more of them. Only slow ones wait for each other."""
PATIENCE_SECONDS = 0.5
"""A store nearby answers sooner."""
API_PATIENCE_SECONDS = 5.0
"""More than a busy API server usually takes, and less than the 10 s after which Kubernetes gives a webhook up by
default. A lent slot lets one more reconcile run, and more of them at a time made changes slower. The value itself was
not measured."""


class ApiTurns(asyncio.Semaphore):
    """The calls of the API server that one namespace may have under way."""

    def __init__(self) -> None:
        super().__init__(API_CALLS_PER_NAMESPACE)
        self.slow = False
        """Whether the namespace's last call took longer than the patience for such calls."""


class ReconcileSlots:
    """The slots that all loops of a process share."""

    def __init__(
        self,
        slots: int = MAX_RECONCILES,
        patience_seconds: float = PATIENCE_SECONDS,
        api_patience_seconds: float = API_PATIENCE_SECONDS,
    ) -> None:
        self._free, self.patience_seconds = asyncio.Semaphore(slots), patience_seconds
        self.api_patience_seconds = api_patience_seconds
        self._api_turns: WeakValueDictionary[str, ApiTurns] = WeakValueDictionary()
        self._waiting = 0
        self._last_grant_seconds = 0.0

    def slot(self, namespace: str) -> Slot:
        """A slot for one reconcile in this namespace. ``async with`` waits for it and holds it, except in
        :func:`outside`."""
        return Slot(self, self.api_turns(namespace))

    def api_turns(self, namespace: str) -> ApiTurns:
        """The namespace's turns. Whether a namespace is slow is forgotten once nobody holds its turns any more."""
        turns = self._api_turns.get(namespace)
        if turns is None:
            turns = self._api_turns[namespace] = ApiTurns()
        return turns

    @property
    def slow_namespaces(self) -> set[str]:
        """Namespaces in which the last call of the API server took longer than the patience for such calls."""
        return {namespace for namespace, turns in self._api_turns.items() if turns.slow}

    @property
    def stalled_seconds(self) -> float:
        """Seconds since anybody got a slot, while somebody waits for one."""
        return time.monotonic() - self._last_grant_seconds if self._waiting else 0.0

    async def acquire(self) -> None:
        if not self._waiting:
            self._last_grant_seconds = time.monotonic()
        self._waiting += 1
        try:
            await self._free.acquire()
            self._last_grant_seconds = time.monotonic()
        finally:
            self._waiting -= 1

    def release(self) -> None:
        self._free.release()


class Slot:
    """The slot of one reconcile. Made by :class:`ReconcileSlots`."""

    def __init__(self, slots: ReconcileSlots, api_turns: ApiTurns) -> None:
        self._slots, self.api_turns = slots, api_turns
        self.patience_seconds = slots.patience_seconds
        self._held = self._waiting = self._ended = False
        self._moved_seconds = time.monotonic()
        self._token: Token[Slot | None]

    @property
    def silent_seconds(self) -> float:
        """Seconds since the reconcile got its slot or an answer. Zero while it waits for a slot."""
        return 0.0 if self._waiting else time.monotonic() - self._moved_seconds

    @property
    def api_patience_seconds(self) -> float:
        """How long a call of the API server may hold the slot."""
        return self.patience_seconds if self.api_turns.slow else self._slots.api_patience_seconds

    def note_api_call(self, seconds: float) -> None:
        """Remember whether the namespace is slow."""
        self.api_turns.slow = seconds > self._slots.api_patience_seconds

    async def __aenter__(self) -> Slot:
        await self.acquire()
        self._token = _current.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        _current.reset(self._token)
        self._ended = True
        self.release()

    async def acquire(self) -> None:
        """Wait for the slot. Once the reconcile has ended it gets none, because nobody would give it back."""
        if self._ended or self._held:
            return
        self._waiting = True
        try:
            await self._slots.acquire()
            if self._ended or self._held:
                self._slots.release()
            else:
                self._held = True
        finally:
            self._waiting = False
            self.got_answer()

    def release(self) -> None:
        if self._held:
            self._held = False
            self._slots.release()

    def got_answer(self) -> None:
        """Something that the reconcile waited for is there."""
        self._moved_seconds = time.monotonic()


_current: ContextVar[Slot | None] = ContextVar("slot", default=None)


def api_turn() -> AbstractAsyncContextManager[None]:
    """Waits until this reconcile's namespace may have another call of the API server. Others wait for nothing."""
    slot = _current.get()
    return contextlib.nullcontext() if slot is None else slot.api_turns


async def outside_api(work: Coroutine[Any, Any, T]) -> T:
    """:func:`outside` for a call of the API server."""
    slot = _current.get()
    if slot is None:
        return await work

    async def timed() -> T:
        started_seconds = time.monotonic()
        try:
            return await work
        finally:
            slot.note_api_call(time.monotonic() - started_seconds)

    return await outside(timed(), slot.api_patience_seconds)


async def outside(work: Coroutine[Any, Any, T], patience_seconds: float | None = None) -> T:
    """Wait for ``work``, which waits for others, and lend this reconcile's slot meanwhile if that takes long.

    Args:
        patience_seconds: after which the slot is lent. None: that of the slot.
    """
    slot = _current.get()
    if slot is None:
        return await work
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=slot.patience_seconds if patience_seconds is None else patience_seconds)
        if not task.done():
            slot.release()
            await asyncio.wait({task})
            await slot.acquire()
    except asyncio.CancelledError:
        task.cancel()
        raise
    slot.got_answer()
    return task.result()
