"""One pass over a listing that deletes what is listed, in batches, over several steps of bounded time.

Invariants: what the store refuses does not stop the pass, so objects behind a refused one are deleted too. The pass
remembers the first refusal and how many there were. The time is looked at after each page of the listing, also after
one from which nothing is to be deleted. So the pass goes on in the next step and does not begin again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from aurora_store.objects import ObjectInfo
from aurora_store.root.deletable_objects import OBJECTS_PER_REQUEST, DeletableObjects, ObjectVersion, Page


@dataclass
class Deleted:
    """The objects that this process has deleted so far."""

    objects: int = 0
    object_bytes: int = 0
    versions: int = 0
    version_bytes: int = 0
    is_versioned: bool = False
    """Whether the bucket keeps versions. Then deleting an object only hides its bytes."""

    @property
    def size_bytes(self) -> int:
        """The bytes that were deleted, each counted once."""
        return self.version_bytes if self.is_versioned else self.object_bytes


def object_pages(objects: Iterator[ObjectInfo]) -> Iterator[Page[ObjectInfo]]:
    """``objects`` in pages of one request each."""
    while page := tuple(islice(objects, OBJECTS_PER_REQUEST)):
        yield Page(page, is_last=len(page) < OBJECTS_PER_REQUEST)


class DeletionPass:
    """Deletes the items of one listing."""

    def __init__(
        self,
        objects: DeletableObjects,
        pages: Iterator[Page[ObjectInfo]] | Iterator[Page[ObjectVersion]],
        deleted: Deleted,
    ) -> None:
        """``deleted`` counts what is deleted."""
        self._objects, self._pages, self._deleted = objects, pages, deleted
        self.count = 0
        """How many items this pass deleted."""
        self.refused = 0
        """How many items the store refused to delete."""
        self.first_refused = ""
        """Key of the first item that the store refused to delete. Empty when it is not known."""
        self.code = ""
        """The store's code for the first refusal."""
        self.temporary_code = ""
        """The store's code for an item that it may delete later. Empty when there is none."""

    def run(self, deadline: float) -> bool:
        """Delete until ``deadline``. Returns whether the pass is over. Raises :class:`StoreError`, which ends it."""
        for page in self._pages:
            for first in range(0, len(page.items), OBJECTS_PER_REQUEST):
                self._delete(page.items[first : first + OBJECTS_PER_REQUEST])
            if time.monotonic() >= deadline and not page.is_last:
                return False
        return True

    def _delete(self, batch: Sequence[ObjectInfo | ObjectVersion]) -> None:
        refused = self._objects.delete_batch(batch)
        indexes, count = (refused.indexes, refused.count) if refused is not None else (frozenset(), 0)
        if refused is not None and not self.refused:
            self.first_refused = "" if refused.first is None else batch[refused.first].key
            self.code = refused.code
        if refused is not None:
            self.temporary_code = self.temporary_code or refused.temporary_code
        self.refused += count
        gone = max(0, len(batch) - count)
        self.count += gone
        size_bytes = sum(item.size_bytes for place, item in enumerate(batch) if place not in indexes)
        if isinstance(batch[0], ObjectVersion):
            self._deleted.versions += gone
            self._deleted.version_bytes += size_bytes
            self._deleted.is_versioned |= any(isinstance(item, ObjectVersion) and item.is_versioned for item in batch)
        else:
            self._deleted.objects += gone
            self._deleted.object_bytes += size_bytes
