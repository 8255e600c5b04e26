"""One task per speculator: it reconciles, then waits for a change or for time to pass.

An event only wakes a task. The task observes everything anew, so an event that is lost delays a reconcile and never
hides a change. After a start, the speculators that seem to be at rest come last: the others wait for this operator.

Invariants: a speculator has at most one task, and only the speculator's end ends the task. A reconcile that fails is
tried again with exponential, jittered backoff. A namespace takes at most :data:`AT_ONCE` reconciles at a time, so
speculators whose store or webhook hangs delay only their namespace.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Protocol
from weakref import WeakValueDictionary

from aurora_operator import metrics
from aurora_operator.errors import Conflict, Gone, OperatorError, Recreated
from aurora_store.errors import ObjectExists, StoreError

log = logging.getLogger(__name__)

SpeculatorKey = tuple[str, str]
"""Namespace and name."""
DEBOUNCE_SECONDS = 0.2
"""Changes come in bursts. One reconcile answers all changes that arrive within this time."""
SETTLE_SECONDS, MAX_SETTLE_SECONDS = 0.5, 15.0
"""kopf lists all objects at its start. Its lists are over after such a pause, or the maximum."""
REST_SPACING_SECONDS = 0.2
"""After a start, one speculator at rest is reconciled in this time. One takes about 0.12 s of a core."""
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.5, 60.0
MAX_RECONCILE_SECONDS = 600.0
"""A reconcile that takes longer is stuck, because each of its calls has a shorter deadline."""
AT_ONCE = 8


class Reconciles(Protocol):
    """What a task needs of a :class:`~aurora_operator.reconciler.Reconciler`."""

    async def reconcile(self, *, woken: bool) -> float:
        """Reconcile once. Returns the seconds until the next time. Raises :class:`Gone`.

        Args:
            woken: something changed, as opposed to time having passed.
        """


class SpeculatorTasks:
    """Starts, wakes and stops the tasks. Must be used in one event loop only."""

    def __init__(self, reconciler_of: Callable[[str, str], Reconciles], settle_seconds: float = SETTLE_SECONDS) -> None:
        self._reconciler_of, self._settle_seconds = reconciler_of, settle_seconds
        self._tasks: dict[SpeculatorKey, _SpeculatorTask] = {}
        self._running: dict[SpeculatorKey, asyncio.Task[None]] = {}
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._started = self._told = asyncio.get_running_loop().time()

    def wake(self, namespace: str, name: str, *, at_rest: bool = False) -> None:
        """Reconcile the speculator soon, because something about it changed. A new one gets a task.

        Args:
            at_rest: the speculator was listed, and nothing seems to be under way.
        """
        key, self._told = (namespace, name), asyncio.get_running_loop().time()
        if key in self._tasks:
            self._tasks[key].wake()
            return
        slots = self._slots.get(namespace) or asyncio.Semaphore(AT_ONCE)
        self._slots[namespace] = slots
        task = self._tasks[key] = _SpeculatorTask(self._reconciler_of(namespace, name), slots, namespace, name)
        self._running[key] = asyncio.create_task(self._run(task, at_rest=at_rest), name=f"reconcile {namespace}/{name}")
        self._running[key].add_done_callback(lambda ended: self._forget(key, ended))

    def child_listed(self, namespace: str, name: str) -> None:
        """A list told of a child. At the start that is no news. Later kopf lists again after lost events."""
        if self._settle_seconds_left() > 0:
            self._told = asyncio.get_running_loop().time()
        else:
            self.wake(namespace, name)

    def _settle_seconds_left(self) -> float:
        until = min(self._told + self._settle_seconds, self._started + MAX_SETTLE_SECONDS)
        return until - asyncio.get_running_loop().time()

    async def _run(self, task: _SpeculatorTask, *, at_rest: bool) -> None:
        if at_rest:
            await self._wait_for_turn(task)
        await task.run()

    async def _wait_for_turn(self, task: _SpeculatorTask) -> None:
        """Wait for the end of kopf's lists, and then for a part of the time that all at rest need. A change ends it."""
        while (seconds := self._settle_seconds_left()) > 0:
            if await task.pause(seconds):
                return
        await task.pause(random.uniform(0, REST_SPACING_SECONDS * len(self._tasks)))  # noqa: S311 - spread

    async def stop(self) -> None:
        """Cancel all tasks. The next leader goes on with a reconcile that is cut short."""
        running = [*self._running.values()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _forget(self, key: SpeculatorKey, ended: asyncio.Task[None]) -> None:
        """Forget a task that ended. A speculator that was created again meanwhile gets a new one."""
        task = self._tasks.pop(key)
        del self._running[key]
        metrics.forget(*key)
        if ended.cancelled():
            return
        if (error := ended.exception()) is not None:
            log.error("the task of %s/%s ended unexpectedly", *key, exc_info=error)
        if task.is_woken or error is not None:
            self.wake(*key)


class _SpeculatorTask:
    """The loop of one speculator."""

    def __init__(self, reconciler: Reconciles, slots: asyncio.Semaphore, namespace: str, name: str) -> None:
        self._reconciler, self._slots = reconciler, slots
        self._labels = (namespace, name)
        self._wake = asyncio.Event()
        self._failures = 0
        """Since a reconcile succeeded."""
        for outcome in metrics.OUTCOMES:
            metrics.RECONCILES.labels(*self._labels, outcome)

    def wake(self) -> None:
        """Reconcile soon."""
        self._wake.set()

    @property
    def is_woken(self) -> bool:
        """Whether something changed since the last reconcile began."""
        return self._wake.is_set()

    async def run(self) -> None:
        """Reconcile until the speculator is gone."""
        woken = True
        while True:
            try:
                delay_seconds = await self._turn(woken=woken)
            except Gone as gone:
                if isinstance(gone, Recreated):
                    self.wake()  # the turn may have begun after both events, and then no other event comes
                return
            woken = await self.pause(delay_seconds)

    async def _turn(self, *, woken: bool) -> float:
        """One reconcile. Returns the seconds to wait before the next one. Raises :class:`Gone`."""
        try:
            async with self._slots, asyncio.timeout(MAX_RECONCILE_SECONDS):
                woken = woken or self.is_woken  # this reconcile sees what changed while it waited for its turn
                self._wake.clear()
                delay_seconds = await self._reconciler.reconcile(woken=woken)
            outcome, self._failures = "done", 0
        except Gone:
            raise
        except Exception as error:
            self._failures += 1
            self._log(error)
            delay_seconds = _backoff_seconds(self._failures)
            outcome = "conflict" if isinstance(error, (Conflict, ObjectExists)) else "error"
        metrics.RECONCILES.labels(*self._labels, outcome).inc()
        return delay_seconds

    def _log(self, error: Exception) -> None:
        if isinstance(error, (Conflict, ObjectExists)):
            log.info("%s/%s: somebody else wrote first, retrying: %s", *self._labels, error)
        elif isinstance(error, (OperatorError, StoreError)):
            log.warning("%s/%s: reconcile failed: %s", *self._labels, error)
        else:
            log.error("%s/%s: reconcile failed unexpectedly", *self._labels, exc_info=error)

    async def pause(self, seconds: float) -> bool:
        """Wait, and return whether a change ended the wait."""
        try:
            # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that arrives together with the result.
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        await asyncio.sleep(DEBOUNCE_SECONDS)
        return True


def _backoff_seconds(attempts: int) -> float:
    """Seconds to wait after this many attempts in vain."""
    limit = min(MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS * 2 ** min(attempts - 1, 10))
    return random.uniform(limit / 2, limit)  # noqa: S311 - jitter
