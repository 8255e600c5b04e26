"""Deletes what a dead trainer left: objects of checkpoints and trainer states that no manifest names.

Invariant: only the trainer writes checkpoints and trainer states, so an object without a manifest both at the first
listing *and* after a grace period is nobody's unfinished work. Two listings are compared, so that the store's clock
does not matter.

A whole draft without a registration stays. The next draft takes its number, and both go when that version expires.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys
from aurora_store.errors import StoreError

GRACE_SECONDS: Final = 120.0
log = logging.getLogger(__name__)


def orphans(registry: PodRegistry) -> set[str]:
    """Keys of checkpoint and trainer-state data that no manifest names."""
    checkpoints = list(registry.objects.list(Keys.CHECKPOINTS))
    complete = {_folder(key) for key in checkpoints if key.endswith("/manifest.json")}
    orphaned = {key for key in checkpoints if _folder(key) not in complete}
    states = list(registry.objects.list(Keys.TRAINER_STATE))
    saved = {key.removesuffix(".json") for key in states if key.endswith(".json")}
    return orphaned | {key for key in states if not key.endswith(".json") and key.rsplit("/", 1)[0] not in saved}


def _folder(key: str) -> str:
    return key.rsplit("/", 1)[0] + "/"


class OrphanCleanup:
    """Lists orphans at the start, and deletes them once the grace period is over."""

    def __init__(self, registry: PodRegistry, grace_seconds: float = GRACE_SECONDS) -> None:
        self._registry = registry
        self._suspects = orphans(registry)
        self._due: float | None = time.monotonic() + grace_seconds if self._suspects else None

    def delete_due(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Delete the orphans of the first listing when the grace period is over; returns how many.

        Call this between two pieces of work. Nothing more is deleted once ``stopping`` returns true.
        """
        if self._due is None or time.monotonic() < self._due:
            return 0
        deleted = 0
        due = self._suspects & orphans(self._registry)
        self._due = None  # not before the listing: if the store fails, the caller tries again
        for key in sorted(due):
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
