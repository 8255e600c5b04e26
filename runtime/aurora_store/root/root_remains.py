"""Deletes what is left of a root whose objects were deleted: older versions, delete markers and unfinished uploads.

Why apart from the objects: not every store knows these calls, and a lock may keep a version for years. So what cannot
be deleted is told and not waited for. Failures that may pass are raised, and the next step tries again.

Invariants: the versions of the record that closed the root go last, together with the record. A delete marker is
deleted only when all versions are gone, because without the marker a version that is locked appears as an object again.
The number of passes is bounded, whatever a store lists.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from aurora_store.errors import CallUnavailable
from aurora_store.root.deletable_objects import DeletableObjects, ObjectVersion, Page, UnfinishedUpload
from aurora_store.root.deletion_pass import Deleted, DeletionPass
from aurora_store.s3_calls.batch_deletion import deletion_error, shown_code

MAX_PASSES: Final = 10
"""Passes over the versions of a root. A store's listing may leave out versions while others are deleted."""


class RootRemains:
    """Versions and unfinished uploads of one root."""

    def __init__(self, objects: DeletableObjects, deleted: Deleted) -> None:
        self._objects, self._deleted = objects, deleted
        self._pass: DeletionPass | None = None
        self._uploads: Iterator[UnfinishedUpload] | None = None
        self._passes_left = MAX_PASSES
        self._versions_done = self._uploads_done = False
        self._versions_unavailable = False
        """Whether the store lists or deletes no versions."""
        self._newest_seen = False
        self._markers = False
        """Whether the versions are gone, and the delete markers follow."""
        self._versions_reason = self._uploads_reason = ""

    @property
    def reason(self) -> str:
        """Why something may remain. Empty when nothing does."""
        return "; ".join(filter(None, (self._versions_reason, self._uploads_reason)))

    def delete(self, newest: str, deadline: float) -> bool:
        """Delete all that is left, apart from the versions of ``newest``. Returns False when the time is over.

        Args:
            newest: key of the record that closed the root. Empty when the root has no object.

        Raises :class:`StoreError`.
        """
        if not self._versions_done:
            try:
                self._versions_done = self._delete_versions(newest, deadline)
            except CallUnavailable as error:
                self._note_unavailable(error)
        if self._versions_done and not self._uploads_done:
            try:
                self._uploads_done = self._abort_uploads(deadline)
            except CallUnavailable as error:
                self._uploads_reason, self._uploads_done = f"unfinished uploads were not aborted: {error}", True
        return self._versions_done and self._uploads_done

    def delete_versions_of(self, newest: str) -> bool:
        """Delete the versions of the last record. Returns whether a listing shows no version, or cannot show any."""
        if self._versions_unavailable:
            return True
        try:
            if newest:
                self._delete_versions_of(newest)
            self._versions_done = bool(self._versions_reason) or next(self._objects.list_versions(""), None) is None
        except CallUnavailable as error:
            self._note_unavailable(error)
        if not self._versions_done:
            # The next step makes another pass, which begins with versions again.
            self._passes_left, self._markers = self._passes_left - 1, False
        return self._versions_done

    def note_unclaimed(self) -> None:
        """Note whether versions are stored that nobody may delete, because no record says whose they are."""
        try:
            if next(self._objects.list_versions(""), None) is not None:
                self._versions_reason = "older versions are stored there, and no record is left that names their owner"
        except CallUnavailable as error:
            self._note_unavailable(error)

    def _delete_versions_of(self, key: str) -> None:
        """Delete one page of versions of ``key``, and its delete markers only when no more versions are left."""
        for markers in (False, True):
            last = DeletionPass(self._objects, self._pages_of(key, markers=markers), self._deleted)
            is_over = last.run(time.monotonic())
            self._note_refusals(last)
            if last.refused or not is_over:
                return

    def _pages_of(self, key: str, *, markers: bool) -> Iterator[Page[ObjectVersion]]:
        for page in self._objects.version_pages(key):
            yield Page([item for item in page.items if item.is_marker is markers], page.is_last)

    def _note_unavailable(self, error: CallUnavailable) -> None:
        self._versions_reason = f"older versions were not deleted: {error}"
        self._versions_unavailable = self._versions_done = True

    def _delete_versions(self, newest: str, deadline: float) -> bool:
        """Make passes until one finds nothing that can be deleted. Returns False when the time is over."""
        while self._passes_left > 0:
            if self._pass is None:
                self._newest_seen = False
                self._pass = DeletionPass(self._objects, self._versions_but(newest), self._deleted)
            under_way, self._pass = self._pass, None
            if not under_way.run(deadline):
                self._pass = under_way
                return False
            if newest and not self._newest_seen:
                raise CallUnavailable(f"the store's list of versions lacks {newest}, which is stored")
            _raise_temporary_refusal(under_way)
            if not under_way.count:
                self._note_refusals(under_way)
                if self._markers or self._versions_reason:
                    return True
                self._markers = True
            else:
                self._passes_left -= 1
        self._versions_reason = f"the store still lists older versions after {MAX_PASSES} deletions"
        return True

    def _versions_but(self, newest: str) -> Iterator[Page[ObjectVersion]]:
        """The versions, or the delete markers, of all objects but ``newest``."""
        for page in self._objects.version_pages(""):
            others = [item for item in page.items if item.key != newest]
            self._newest_seen = self._newest_seen or len(others) < len(page.items)
            yield Page([item for item in others if item.is_marker is self._markers], page.is_last)

    def _note_refusals(self, ended: DeletionPass) -> None:
        """Note what the store refused for good. Raises :class:`StoreError` for what it may delete later."""
        _raise_temporary_refusal(ended)
        if ended.refused and not self._versions_reason:
            self._versions_reason = (
                f"the store refused to delete {ended.refused} older versions, the first one of"
                f" {ended.first_refused or 'an unknown object'} ({shown_code(ended.code)}): a lock holds them, or"
                " s3:DeleteObjectVersion is missing"
            )

    def _abort_uploads(self, deadline: float) -> bool:
        if self._uploads is None:
            self._uploads = self._objects.list_uploads()
        under_way, self._uploads = self._uploads, None
        for upload in under_way:
            self._objects.abort(upload)
            if time.monotonic() >= deadline:
                self._uploads = under_way
                return False
        return True


def _raise_temporary_refusal(ended: DeletionPass) -> None:
    if ended.temporary_code:
        raise deletion_error("older versions", ended.refused, ended.temporary_code)
