"""Deletes objects that no manifest names: uploads that a dead trainer left unfinished (promise 4, "Durable").

Invariant: only the trainer writes checkpoints and trainer states, so an object without a manifest both at the first
listing *and* after a grace period is nobody's unfinished work. Two listings are compared, so that the store's clock
does not matter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from aurora_store import Keys, Registry
from aurora_store.errors import StoreError

GRACE_SECONDS: Final = 120.0
log = logging.getLogger(__name__)


def orphans(registry: Registry) -> set[str]:
    """Keys of checkpoint and trainer-state data that no manifest names."""
    checkpoints = list(registry.objects.list(Keys.CHECKPOINTS))
    complete = {key.rsplit("/", 1)[0] for key in checkpoints if key.endswith("/manifest.json")}
    orphaned = {key for key in checkpoints if key.rsplit("/", 1)[0] not in complete}
    states = list(registry.objects.list(Keys.TRAINER_STATE))
    saved = {key.removesuffix(".json") for key in states if key.endswith(".json")}
    return orphaned | {key for key in states if not key.endswith(".json") and key.rsplit("/", 1)[0] not in saved}


class OrphanCleanup:
    """Lists orphans at the start, and deletes them once the grace period is over."""

    def __init__(self, registry: Registry, grace_seconds: float = GRACE_SECONDS) -> None:
        self._registry = registry
        self._suspects = orphans(registry)
        self._due: float | None = time.monotonic() + grace_seconds if self._suspects else None

    def delete_due(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Delete the orphans of the first listing when the grace period is over; returns how many.

        Call this between two pieces of work. Nothing more is deleted once ``stopping`` returns true.
        """
        if self._due is None or time.monotonic() < self._due:
            return 0
        self._due = None
        deleted = 0
        for key in sorted(self._suspects & orphans(self._registry)):
            if stopping():
                break
            try:
                self._registry.objects.delete(key)
                deleted += 1
            except StoreError as error:
                log.warning("%s is an orphan and stays until the trainer's next start: %s", key, error)
        if deleted:
            log.info("deleted %d objects that no manifest names", deleted)
        return deleted
