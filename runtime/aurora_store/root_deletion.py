"""Deletes all objects of one root, with their older versions and unfinished uploads, and nothing else.

A last channel record with reason ``Deleting`` closes the root. It takes the next epoch, create-once: so a speculator
that takes the root over comes either before it, and the root is kept, or after it, and is refused. Pods that still run
may no longer write (``root_ownership``). Then everything is listed and deleted, the channel last, until a listing is
empty. An interrupted deletion begins anew, and closes the root again if the record was deleted already.

Versions: in a bucket with versioning, deleting an object only hides it. A delete marker is deleted only when no version
is left, because without the marker a version that is locked appears as an object again. Not every store knows these
calls, and a lock may keep a version for years. So versions and uploads that the store refuses to delete are reported
and not waited for.

Invariants: only keys of our folders below ``<root>/`` are deleted, and no other root that lies inside this one. A root
that belongs to another speculator is kept. Traces without a channel are kept, because nobody is known to own them: pods
write traces only while there is a channel, so it was lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from botocore.exceptions import ClientError

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.errors import InvalidRecord
from aurora_store.errors import CallUnavailable, ObjectExists, ObjectMissing, ObjectRefused, StoreError, bounded_text
from aurora_store.keys import Keys, in_sequence, record_numbers
from aurora_store.objects import ObjectStore, StoreConfig
from aurora_store.root_ownership import owned_text
from aurora_store.s3_client import store_error

MAX_PASSES: Final = 10
"""Passes over a root until it must be empty. A pod that runs on may write until it learns that the root is closed."""
_Listing = Literal["list_objects_v2", "list_object_versions", "list_multipart_uploads"]


@dataclass(frozen=True)
class DeletionProgress:
    """What this process has deleted so far, and how the deletion ended, if it did."""

    deleted: int = 0
    """Objects, and in a bucket with versioning their older versions and delete markers."""
    done: bool = False
    """A listing of the root was empty, or the root is kept."""
    kept: str = ""
    """Why the root is kept; empty unless it belongs to another speculator."""
    remains: str = ""
    """Why older versions or unfinished uploads may remain; empty when there are none."""


class RootDeletion(ObjectStore):
    """Deletes the root of one speculator in steps of bounded time. Not thread-safe: only one step at a time."""

    def __init__(self, config: StoreConfig, speculator: str, **options: Any) -> None:
        """``speculator``: owner id of the speculator that is deleted. ``options``: those of :class:`ObjectStore`."""
        if "/" not in config.root.strip("/") or config.root != config.root.strip("/"):
            raise StoreError(f"{config.root!r} is not the root of a speculator, so nothing below it is deleted")
        super().__init__(config, **options)
        self._speculator = speculator
        self._work: Iterator[None] | None = None
        """The rest of the deletion, which goes on with the next step."""
        self._deleted = 0
        self._kept = self._remains = ""

    def step(self, seconds: float) -> DeletionProgress:
        """Delete for about ``seconds``. Raises :class:`StoreError`. The next step goes on, or begins anew."""
        deadline = time.monotonic() + seconds
        work, self._work = self._work or self._delete_root(), None
        for _ in work:
            if time.monotonic() >= deadline:
                self._work = work
                return DeletionProgress(self._deleted)
        return DeletionProgress(self._deleted, done=True, kept=self._kept, remains=self._remains)

    def _delete_root(self) -> Iterator[None]:
        """The whole deletion. Yields after each request that deletes."""
        self._kept = self._close()
        if self._kept:
            return
        for _ in range(MAX_PASSES):
            self._remains = ""
            before = self._deleted
            yield from self._delete_all(lambda key: not key.startswith(Keys.CHANNEL))
            if all(key.startswith(Keys.CHANNEL) for key in self._keys()):
                yield from self._delete_all(lambda _: True)
            if next(self._keys(), None) is None and (self._remains or self._deleted == before):
                return
        raise StoreError(f"objects below {self.config.root} come back after {MAX_PASSES} deletions; find their writer")

    def _close(self) -> str:
        """Close the root with a last channel record. Returns why the root is kept; empty when it is deleted."""
        root, channel = self.config.root, self._newest_channel()
        if channel is None:
            lost = next(self.list(Keys.TRACES), None) is not None
            return f"the root {root} has traces, and no channel record that names its owner" if lost else ""
        if channel.owner.id != self._speculator:
            return owned_text(channel, root)
        if channel.reason is not ChannelReason.DELETING:
            closing = {"epoch": channel.epoch + 1, "reason": ChannelReason.DELETING, "created": datetime.now(UTC)}
            last = channel.model_copy(update={**closing, "message": "the speculator was deleted"})
            try:
                self.create(Keys.channel(last.epoch), last.to_json())
            except ObjectExists as error:
                text = f"the root {root} was not closed: another writer took the next epoch of its channel"
                raise StoreError(bounded_text(text)) from error
        return ""

    def _keys(self) -> Iterator[str]:
        """The keys of our objects that are left."""
        return (key for key in self.list("") if key.startswith(Keys.FOLDERS))

    def _newest_channel(self) -> Channel | None:
        """The record with the highest epoch in sequence. Raises :class:`StoreError` when it cannot be read.

        The sequence begins with the lowest number that is left, because an interrupted deletion leaves the newest.
        """
        numbers = record_numbers(self.list(Keys.CHANNEL), Keys.CHANNEL)
        epochs = in_sequence(numbers, min(numbers, default=0))
        if not epochs:
            return None
        key = Keys.channel(epochs[-1])
        try:
            channel = Channel.from_json(self.get(key))
        except InvalidRecord as error:
            raise StoreError(bounded_text(f"{key}: {error}; delete it, and find out who wrote it")) from error
        if channel.epoch != epochs[-1]:
            raise StoreError(f"{key} is a copy of another record; delete it, and find out who wrote it")
        return channel

    def _delete_all(self, chosen: Callable[[str], bool]) -> Iterator[None]:
        """Delete the objects whose keys are ``chosen``, then their older versions and unfinished uploads.

        Raises :class:`StoreError` with the first object that the store refuses, after the others are deleted.
        """
        if refused := (yield from self._delete_listed("list_objects_v2", "Contents", ("Key",), chosen)):
            raise self._deletion_error(refused)
        for work in (self._delete_versions(chosen), self._abort_uploads(chosen)):
            try:
                yield from work
            except (CallUnavailable, ObjectRefused) as error:
                self._remains = self._remains or f"older versions or unfinished uploads were not deleted: {error}"

    def _delete_versions(self, chosen: Callable[[str], bool]) -> Iterator[None]:
        for entry in ("Versions", "DeleteMarkers"):
            refused = yield from self._delete_listed("list_object_versions", entry, ("Key", "VersionId"), chosen)
            if refused:
                why = "a lock holds them, or s3:DeleteObjectVersion is missing"
                error = self._deletion_error(refused)
                self._remains = f"the store refused to delete older versions ({why}): {error}"
                return

    def _delete_listed(
        self, listing: _Listing, entry: str, fields: tuple[str, ...], chosen: Callable[[str], bool]
    ) -> Generator[None, None, list[dict[str, str]]]:
        """Delete what a listing names. Returns what the store refused."""
        refused: list[dict[str, str]] = []
        for page in self._pages(listing):
            batch = self._chosen(page.get(entry), chosen, fields)
            if batch:
                with self._call("delete", f"{len(batch)} objects"):
                    found = self._request_deletion(batch)
                refused += found
                self._deleted += max(0, len(batch) - len(found))
                yield
        return refused

    def _request_deletion(self, objects: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
        """Delete objects or versions. Returns what the store did not delete: ``Key`` and ``Code``, untrusted texts."""
        deletion: Any = {"Objects": objects, "Quiet": True}
        answer: Any = self._s3.delete_objects(Bucket=self.config.bucket, Delete=deletion)
        refused: Sequence[dict[str, str]] = answer.get("Errors") or ()
        return refused

    def _deletion_error(self, refused: Sequence[dict[str, str]]) -> StoreError:
        """The error for objects that the store did not delete."""
        first = ClientError({"Error": {"Code": refused[0].get("Code", "")}}, "DeleteObjects")
        key = refused[0].get("Key", "").removeprefix(self._full_key(""))
        error = store_error(first, f"delete {key}", self.config.endpoint or "S3")
        return type(error)(bounded_text(f"{error} ({len(refused)} objects were refused)"))

    def _abort_uploads(self, chosen: Callable[[str], bool]) -> Iterator[None]:
        for page in self._pages("list_multipart_uploads"):
            for upload in self._chosen(page.get("Uploads"), chosen, ("Key", "UploadId")):
                with suppress(ObjectMissing), self._call("abort", upload["Key"]):
                    self._s3.abort_multipart_upload(
                        Bucket=self.config.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                yield

    def _chosen(
        self, listed: list[Mapping[str, str]] | None, chosen: Callable[[str], bool], fields: tuple[str, ...]
    ) -> list[dict[str, str]]:
        """The ``fields`` of those listed items below the root whose keys are ``chosen``."""
        folder = self._full_key("")
        folders = tuple(folder + name for name in Keys.FOLDERS)
        ours = [item for item in listed or () if item.get("Key", "").startswith(folders)]
        if any(item.get(field) is None for item in ours for field in fields):
            raise CallUnavailable(f"the store's listing gives no {' and '.join(fields)}")
        return [{field: item[field] for field in fields} for item in ours if chosen(item["Key"].removeprefix(folder))]

    def _pages(self, listing: _Listing) -> Iterator[dict[str, Any]]:
        arguments = {"Bucket": self.config.bucket, "Prefix": self._full_key("")}
        paginator: Any = self._s3.get_paginator(listing)
        pages = iter(paginator.paginate(**arguments))
        while True:
            with self._call("list", "the root"):
                page = next(pages, None)
            if page is None:
                return
            yield page
