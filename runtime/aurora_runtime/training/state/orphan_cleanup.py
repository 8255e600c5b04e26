"""Removal of what no manifest names: uploads that a dead trainer left unfinished (promise "durable").

Invariant: only the trainer writes checkpoints and trainer states, so what has no manifest at the first look *and* after
a grace period is nobody's unfinished work. Two looks, because the store's clock is not asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from aurora_store import Keys, Registry
from aurora_store.errors import StoreError

GRACE_S: Final = 120.0
log = logging.getLogger(__name__)


def orphans(registry: Registry) -> set[str]:
    """Keys of checkpoint and trainer-state data that no manifest names."""
    checkpoints = list(registry.objects.list(Keys.CHECKPOINTS))
    complete = {key.rsplit("/", 1)[0] for key in checkpoints if key.endswith("/manifest.json")}
    found = {key for key in checkpoints if key.rsplit("/", 1)[0] not in complete}
    states = list(registry.objects.list(Keys.TRAINER_STATE))
    saved = {key.removesuffix(".json") for key in states if key.endswith(".json")}
    return found | {key for key in states if not key.endswith(".json") and key.rsplit("/", 1)[0] not in saved}


class OrphanCleanup:
    """Looks at start, and deletes once the grace period is over. Call :meth:`tick` between two pieces of work."""

    def __init__(self, registry: Registry, grace: float = GRACE_S) -> None:
        self._registry = registry
        self._suspects = orphans(registry)
        self._due: float | None = time.monotonic() + grace if self._suspects else None

    def tick(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Delete the orphans of the first look when it is time, none once ``stopping``; returns how many went."""
        if self._due is None or time.monotonic() < self._due:
            return 0
        self._due = None
        gone = sorted(self._suspects & orphans(self._registry))
        deleted = 0
        for key in gone:
            if stopping():
                break
            try:
                self._registry.objects.delete(key)
                deleted += 1
            except StoreError as error:
                log.warning("an orphan stays until the trainer's next start: %s", error)
        if deleted:
            log.info("deleted %d objects that no manifest names", deleted)
        return deleted
