"""Deletes all objects of one root, and nothing else.

The order makes an interruption harmless, and keeps another speculator from restoring a root that is half deleted:

1. A last channel record with reason ``Deleting`` closes the root. The record takes the next epoch, create-once, so a
   takeover comes either before it, and the root is kept, or after it, and is refused. Pods that still run may no longer
   write (``fenced_objects``).
2. All other objects are deleted, then the channel's records, the newest one last. So as long as an object is left, the
   newest record says that the root is being deleted.
3. The root is listed again. Only an empty listing ends the deletion.

Invariants: only keys below ``<root>/`` are deleted. A root that belongs to another speculator is kept. Repeating a
deletion is harmless. An object in the channel whose name is no record's, or whose number is out of sequence, decides
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.errors import InvalidRecord
from aurora_store.errors import ObjectExists, StoreError, bounded_text
from aurora_store.keys import Keys, first_owner, in_sequence, record_numbers
from aurora_store.objects import ObjectInfo, ObjectStore
from aurora_store.root.root_ownership import current_owner, owned_text

OBJECTS_PER_REQUEST: Final = 500
MAX_LOST_RACES: Final = 5


@dataclass(frozen=True)
class DeletionProgress:
    """What was deleted since this process began, and how the deletion ended, if it did."""

    objects: int = 0
    size_bytes: int = 0
    done: bool = False
    """A listing of the root was empty."""
    kept: str = ""
    """Why the root is kept; empty unless it belongs to another speculator."""


class RootDeletion:
    """Deletes the root of one speculator in steps of bounded time. Not thread-safe: only one step at a time."""

    def __init__(self, objects: ObjectStore, owner: str) -> None:
        """``owner``: owner id of the speculator that is deleted."""
        root = objects.config.root
        if "/" not in root.strip("/") or root != root.strip("/"):
            raise StoreError(f"{root!r} is not the root of a speculator, so nothing below it is deleted")
        self._objects, self._owner = objects, owner
        self._deleted, self._size_bytes, self._closed = 0, 0, False

    def step(self, seconds: float) -> DeletionProgress:
        """Delete for about ``seconds``. Raises :class:`StoreError`. The next step goes on."""
        deadline = time.monotonic() + seconds
        if self._is_empty():
            return self._progress(done=True)
        if kept := self._close():
            return DeletionProgress(kept=kept)
        data = (item for item in self._objects.list_objects("") if not item.key.startswith(Keys.CHANNEL))
        if not self._delete(data, deadline):
            return self._progress()
        epochs = self._epochs()
        newest = Keys.channel(epochs[-1]) if epochs else ""
        channel = list(self._objects.list_objects(Keys.CHANNEL))
        if not self._delete((item for item in channel if item.key != newest), deadline):
            return self._progress()
        self._delete((item for item in channel if item.key == newest), deadline)
        return self._progress(done=self._is_empty())

    def _progress(self, *, done: bool = False) -> DeletionProgress:
        return DeletionProgress(self._deleted, self._size_bytes, done)

    def _is_empty(self) -> bool:
        return next(self._objects.list(""), None) is None

    def _close(self) -> str:
        """Close the root with a last channel record. Returns why the root is kept, or an empty string."""
        for _ in range(MAX_LOST_RACES):
            channel = self._newest_channel()
            if refusal := self._kept(channel):
                return refusal
            if channel is None or channel.reason is ChannelReason.DELETING:
                self._closed = True
                return ""
            last = channel.model_copy(
                update={
                    "epoch": channel.epoch + 1,
                    "reason": ChannelReason.DELETING,
                    "message": "the speculator was deleted with deletionPolicy: Delete",
                    "created": datetime.now(UTC).replace(microsecond=0),
                }
            )
            try:
                self._objects.create(Keys.channel(last.epoch), last.to_json())
            except ObjectExists:
                continue  # an operator decided something meanwhile, or took the root over
            self._closed = True
            return ""
        text = f"{MAX_LOST_RACES} times, another writer took the next epoch of its channel first; find out who"
        raise StoreError(f"the root {self._objects.config.root} was not closed: {text}")

    def _kept(self, channel: Channel | None) -> str:
        root = self._objects.config.root
        if channel is None:
            if self._closed or self._owner == first_owner(root):
                return ""
            return f"the root {root} has no channel record that names its owner"
        return "" if current_owner(channel, root) == self._owner else owned_text(channel, root)

    def _newest_channel(self) -> Channel | None:
        """The record with the highest epoch in sequence. Raises :class:`StoreError` when it cannot be read."""
        epochs = self._epochs()
        if not epochs:
            return None
        key = Keys.channel(epochs[-1])
        try:
            channel = Channel.from_json(self._objects.get(key))
        except InvalidRecord as error:
            raise StoreError(bounded_text(f"{key}: {error}; delete it, and find out who wrote it")) from error
        if channel.epoch != epochs[-1]:
            raise StoreError(f"{key} is a copy of another record; delete it, and find out who wrote it")
        return channel

    def _epochs(self) -> list[int]:
        """The epochs of the channel's records in ascending order, without foreign ones.

        They begin with the lowest that is left, because an interrupted deletion leaves only the newest.
        """
        numbers = record_numbers(self._objects.list(Keys.CHANNEL), Keys.CHANNEL)
        return in_sequence(numbers, min(numbers, default=0))

    def _delete(self, items: Iterator[ObjectInfo], deadline: float) -> bool:
        """Delete ``items`` in batches. Returns whether all are deleted; False when the time is over."""
        while batch := list(islice(items, OBJECTS_PER_REQUEST)):
            self._objects.delete_many([item.key for item in batch])
            self._deleted += len(batch)
            self._size_bytes += sum(item.size_bytes for item in batch)
            if time.monotonic() >= deadline and len(batch) == OBJECTS_PER_REQUEST:
                return False
        return True
