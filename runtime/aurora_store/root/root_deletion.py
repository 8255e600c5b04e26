"""Deletes all objects of one root, and nothing else.

The order makes an interruption harmless, and keeps another speculator from restoring a root that is half deleted:

1. A last channel record with reason ``Deleting`` closes the root. The record takes the next epoch, create-once, so a
   takeover comes either before it, and the root is kept, or after it, and is refused. Pods that still run may no longer
   write (``fenced_objects``).
2. All other objects are deleted, the channel's older records after the rest. Then older versions of all objects follow,
   and unfinished uploads (``root_remains``). So as long as an object is left, the newest record says that the root is
   being deleted.
3. If records are expected, the step says that only the newest record is left, and waits until the caller has noted it.
4. The newest record is deleted, and the root is listed again. Only an empty listing ends the deletion.

Why records are expected: a root that was in use has a channel. If the store shows none, the settings may lead to
another store than before, and an empty listing there proves nothing.

Invariants: only keys below ``<root>/`` are deleted. A root that belongs to another speculator is kept. Repeating a
deletion is harmless. An object that the store refuses to delete protects neither those behind it nor older versions. An
object in the channel whose name is no record's, or whose number is out of sequence, decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.errors import InvalidRecord
from aurora_store.errors import ObjectExists, StoreError, bounded_text
from aurora_store.keys import Keys, first_owner, in_sequence, record_numbers
from aurora_store.objects import ObjectInfo
from aurora_store.root.deletable_objects import DeletableObjects
from aurora_store.root.deletion_pass import Deleted, DeletionPass, object_pages
from aurora_store.root.root_ownership import current_owner, owned_text
from aurora_store.root.root_remains import RootRemains
from aurora_store.s3_calls.batch_deletion import deletion_error

MAX_LOST_RACES: Final = 5


@dataclass(frozen=True)
class DeletionProgress:
    """The objects that this process has deleted so far, and how the deletion ended, if it did."""

    objects: int = 0
    size_bytes: int = 0
    done: bool = False
    """A listing of the root was empty."""
    kept: str = ""
    """Why the root is kept; empty unless it belongs to another speculator."""
    versions: int = 0
    """Stored versions and delete markers of a bucket with versioning."""
    only_record_left: bool = False
    """Only the record that closed the root is left. The next step may expect no records."""
    no_records: bool = False
    """Records are expected, and the root has none."""
    remains: str = ""
    """Why older versions or unfinished uploads may remain; empty when there are none."""


class RootDeletion:
    """Deletes the root of one speculator in steps of bounded time. Not thread-safe: only one step at a time."""

    def __init__(self, objects: DeletableObjects, owner: str) -> None:
        """``owner``: owner id of the speculator that is deleted."""
        root = objects.config.root
        if "/" not in root.strip("/") or root != root.strip("/"):
            raise StoreError(f"{root!r} is not the root of a speculator, so nothing below it is deleted")
        self._objects, self._owner = objects, owner
        self._deleted, self._closed = Deleted(), False
        self._pass: DeletionPass | None = None
        """The pass over all objects that is under way."""
        self._objects_done = False
        """The pass has ended, and older versions are deleted now."""
        self._refused: DeletionPass | None = None
        """The pass that ended, if the store refused an object. It is reported when the versions are deleted, too."""
        self._remains = RootRemains(objects, self._deleted)

    def step(self, seconds: float, *, expects_records: bool = False) -> DeletionProgress:
        """Delete for about ``seconds``. Raises :class:`StoreError`. The next step goes on.

        Args:
            expects_records: the root was in use, and nobody noted yet that only its last record is left.
        """
        deadline = time.monotonic() + seconds
        if self._is_empty():
            return self._end_of_empty_root(deadline, expects_records=expects_records)
        if expects_records and self._owner_is_unknown():
            return self._progress(no_records=True)
        if kept := self._close():
            return DeletionProgress(kept=kept)
        newest = self._newest_key()
        if not (self._delete_all_but(newest, deadline) and self._remains.delete(newest, deadline)):
            return self._progress()
        if any(key != newest for key in self._objects.list("")):
            # The store refused them, or a pod had not learned yet that the root is closed.
            refused, self._refused = self._refused, None
            self._objects_done, self._remains = False, RootRemains(self._objects, self._deleted)
            if refused is not None:
                _raise_refusal(refused)
            return self._progress()
        if expects_records:
            return self._progress(only_record_left=bool(newest), no_records=not newest)
        return self._progress(done=self._delete_newest(newest))

    def _end_of_empty_root(self, deadline: float, *, expects_records: bool) -> DeletionProgress:
        """Interpret an empty listing. Versions without an object may be those of another owner of the root."""
        if expects_records:
            return self._progress(no_records=True)
        if not self._closed and self._owner != first_owner(self._objects.config.root):
            self._remains.note_unclaimed()
            return self._progress(done=True)
        ended = self._remains.delete("", deadline) and self._remains.delete_versions_of("")
        return self._progress(done=ended and self._is_empty())

    def _progress(
        self, *, done: bool = False, only_record_left: bool = False, no_records: bool = False
    ) -> DeletionProgress:
        return DeletionProgress(
            objects=self._deleted.objects,
            size_bytes=self._deleted.size_bytes,
            done=done,
            versions=self._deleted.versions,
            only_record_left=only_record_left,
            no_records=no_records,
            remains=self._remains.reason if done else "",
        )

    def _is_empty(self) -> bool:
        return next(self._objects.list(""), None) is None

    def _owner_is_unknown(self) -> bool:
        """Whether only a record of the channel could name this speculator as the owner, and there is none."""
        return self._owner != first_owner(self._objects.config.root) and not self._epochs()

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

    def _newest_key(self) -> str:
        """Key of the record with the highest epoch in sequence; empty without one."""
        epochs = self._epochs()
        return Keys.channel(epochs[-1]) if epochs else ""

    def _epochs(self) -> list[int]:
        """The epochs of the channel's records in ascending order, without foreign ones.

        They begin with the lowest that is left, because an interrupted deletion leaves only the newest.
        """
        numbers = record_numbers(self._objects.list(Keys.CHANNEL), Keys.CHANNEL)
        return in_sequence(numbers, min(numbers, default=0))

    def _delete_all_but(self, newest: str, deadline: float) -> bool:
        """Delete all objects but ``newest``. Returns whether the pass has ended; False when the time is over."""
        if self._objects_done:
            return True
        if self._pass is None:
            self._pass = DeletionPass(self._objects, object_pages(self._all_but(newest)), self._deleted)
        under_way, self._pass = self._pass, None
        if not under_way.run(deadline):
            self._pass = under_way
            return False
        self._objects_done, self._refused = True, under_way if under_way.refused else None
        return True

    def _all_but(self, newest: str) -> Iterator[ObjectInfo]:
        """All objects but ``newest``, the channel's records last."""
        for item in self._objects.list_objects(""):
            if not item.key.startswith(Keys.CHANNEL):
                yield item
        for item in self._objects.list_objects(Keys.CHANNEL):
            if item.key != newest:
                yield item

    def _delete_newest(self, newest: str) -> bool:
        """Delete the last record. Returns whether nothing is left."""
        if newest:
            # The prefix of a listing also matches longer keys.
            items = (item for item in self._objects.list_objects(newest) if item.key == newest)
            last = DeletionPass(self._objects, object_pages(items), self._deleted)
            last.run(time.monotonic())
            _raise_refusal(last)
        return self._remains.delete_versions_of(newest) and self._is_empty()


def _raise_refusal(ended: DeletionPass) -> None:
    if ended.refused:
        raise deletion_error(ended.first_refused, ended.refused, ended.code)
