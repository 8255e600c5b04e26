"""Keeps one speculator reconciled until it is deleted: reconcile, then wait for a change or for time to pass.

Invariant: only the speculator's deletion ends the loop. Its handler catches every exception of a reconcile. The
handler logs the exception and retries with exponential, jittered backoff. After a conflict with another writer it
retries at once, unless conflicts go on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from aurora_operator import metrics
from aurora_operator.errors import Conflict, NotFound, OperatorError
from aurora_operator.reconcile_slots import ReconcileSlots, Slot
from aurora_operator.reconciler import Reconciler
from aurora_store.errors import ObjectExists, StoreError

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS = 0.2
"""Changes of children come in bursts: one reconcile answers all changes that arrive within this time. A change of the
spec waits only until this time has passed since the last reconcile began."""
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0
MAX_QUICK_RETRIES = 5
"""Conflicts in a row that are retried at once. More conflicts have a cause that lasts, such as a store whose listings
lag behind its writes."""
MAX_RECONCILE_SECONDS = 600.0
"""A reconcile that gets no answer for longer is stuck, because each of its calls has a shorter deadline. The wait for a
slot does not count: it is long when many others wait for slow calls."""


class SpeculatorLoop:
    """The loop of one speculator."""

    def __init__(self, reconciler: Reconciler, slots: ReconcileSlots, namespace: str, name: str) -> None:
        self._reconciler, self._slots = reconciler, slots
        self._speculator = f"{namespace}/{name}"
        self._labels = (namespace, name)
        self._api_turns = slots.api_turns(namespace)
        """Held between reconciles too, so that a slow namespace is remembered for as long as it has a loop."""
        for outcome in metrics.OUTCOMES:
            metrics.RECONCILES.labels(*self._labels, outcome)
        self._wake = asyncio.Event()
        self._failures = self._conflicts = 0
        """Failures and conflicts since a reconcile succeeded."""
        self._shown = False
        """Whether the metrics show the stored status. They do so before the first reconcile, which waits for a slot."""
        self._slot: Slot | None = None
        """The slot of the reconcile that runs, or that waits for its slot."""
        self._began_seconds = time.monotonic()
        self._finish_by_seconds = self._began_seconds + MAX_RECONCILE_SECONDS

    def wake(self) -> None:
        """Reconcile soon, because something changed."""
        self._wake.set()

    @property
    def overdue_seconds(self) -> float:
        """Seconds since the loop should have gone on; negative while the loop turns."""
        if self._slot is not None:
            return self._slot.silent_seconds - MAX_RECONCILE_SECONDS
        return time.monotonic() - self._finish_by_seconds

    async def run(self) -> None:
        """Reconcile until the speculator is gone."""
        woken = True
        while not self._reconciler.is_gone():
            self._wake.clear()
            self._began_seconds = time.monotonic()
            delay_seconds = await self._turn(woken=woken)
            self._finish_by_seconds = time.monotonic() + delay_seconds + MAX_RECONCILE_SECONDS
            woken = await self._pause(delay_seconds)

    async def _turn(self, *, woken: bool) -> float:
        """One reconcile. Returns the seconds to wait before the next one."""
        try:
            if not self._shown:
                self._shown = True
                self._reconciler.show_stored_status()
            self._slot = self._slots.slot(self._labels[0])
            async with self._slot:
                delay_seconds = await self._reconciler.reconcile(woken=woken)
            outcome, self._failures, self._conflicts = "done", 0, 0
        except (Conflict, ObjectExists) as error:
            delay_seconds, outcome = self._retry_seconds(error), "conflict"
        except Exception as error:
            if isinstance(error, NotFound) and self._reconciler.is_gone():
                return 0.0
            delay_seconds, outcome = self._backoff(error), "error"
        finally:
            self._slot = None
        metrics.RECONCILES.labels(*self._labels, outcome).inc()
        return delay_seconds

    def _retry_seconds(self, conflict: Exception) -> float:
        """Log ``conflict``, and return the seconds to wait before the next attempt."""
        self._conflicts += 1
        if self._conflicts <= MAX_QUICK_RETRIES:
            log.info("%s: somebody else wrote first, retrying: %s", self._speculator, conflict)
            return random.uniform(0.1, 0.5)  # noqa: S311 - jitter
        log.warning("%s: the conflict number %d in a row: %s", self._speculator, self._conflicts, conflict)
        return _backoff_seconds(self._conflicts - MAX_QUICK_RETRIES)

    def _backoff(self, error: Exception) -> float:
        """Log ``error``, and return the seconds to wait before the next attempt."""
        self._failures += 1
        if isinstance(error, (OperatorError, StoreError)):
            log.warning("%s: reconcile failed: %s", self._speculator, error)
        else:
            log.error("%s: reconcile failed unexpectedly", self._speculator, exc_info=error)
        return _backoff_seconds(self._failures)

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether a change ended the wait."""
        try:
            # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that arrives together with the result.
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        passed_seconds = time.monotonic() - self._began_seconds if self._reconciler.has_new_spec() else 0.0
        await asyncio.sleep(max(0.0, DEBOUNCE_SECONDS - passed_seconds))
        return True


def _backoff_seconds(attempts: int) -> float:
    """Seconds to wait after this many attempts in vain."""
    limit = min(MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS * 2 ** min(attempts - 1, 10))
    return random.uniform(limit / 2, limit)  # noqa: S311 - jitter
