"""One pass over a listing that deletes what is listed, in batches, over several steps of bounded time.

Invariant: what the store refuses does not stop the pass, so objects behind a refused one are deleted too. The pass
remembers the first refusal and how many there were.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from aurora_store.objects import ObjectInfo
from aurora_store.root.deletable_objects import OBJECTS_PER_REQUEST, DeletableObjects, ObjectVersion


@dataclass
class Deleted:
    """What was deleted since this process began."""

    objects: int = 0
    versions: int = 0
    size_bytes: int = 0


class DeletionPass:
    """Deletes the items of one listing."""

    def __init__(
        self, objects: DeletableObjects, items: Iterator[ObjectInfo | ObjectVersion], deleted: Deleted
    ) -> None:
        """``deleted`` counts what is deleted."""
        self._objects, self._items, self._deleted = objects, items, deleted
        self.count = 0
        """How many items this pass deleted."""
        self.refused = 0
        """How many items the store refused to delete."""
        self.first_refused = ""
        """Key of the first item that the store refused to delete. Empty when it is not known."""
        self.code = ""
        """The store's code for the first refusal."""

    def run(self, deadline: float) -> bool:
        """Delete until ``deadline``. Returns whether the pass is over. Raises :class:`StoreError`, which ends it."""
        while batch := list(islice(self._items, OBJECTS_PER_REQUEST)):
            self._delete(batch)
            if time.monotonic() >= deadline and len(batch) == OBJECTS_PER_REQUEST:
                return False
        return True

    def _delete(self, batch: list[ObjectInfo | ObjectVersion]) -> None:
        refused = self._objects.delete_batch(batch)
        indexes, count = (refused.indexes, refused.count) if refused is not None else (frozenset(), 0)
        if refused is not None and not self.refused:
            self.first_refused = "" if refused.first is None else batch[refused.first].key
            self.code = refused.code
        self.refused += count
        gone = max(0, len(batch) - count)
        self.count += gone
        if isinstance(batch[0], ObjectVersion):
            self._deleted.versions += gone
        else:
            self._deleted.objects += gone
        self._deleted.size_bytes += sum(item.size_bytes for place, item in enumerate(batch) if place not in indexes)
