"""Objects of a root that is deleted, with what a listing of objects does not show: versions and unfinished uploads.

Why: in a bucket with versioning, deleting an object by its key only hides it, and every byte stays readable. The parts
of an upload that never ended are stored too.

A store may lack these calls, and credentials may lack the rights. Then :class:`CallUnavailable` is raised, because
nobody waits for a store to learn a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from botocore.exceptions import ClientError

from aurora_store.errors import CallUnavailable, ObjectMissing, StoreError
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_LISTING_PAGE_BYTES, ObjectInfo, ObjectStore
from aurora_store.s3_calls.batch_deletion import RefusedDeletions
from aurora_store.s3_calls.call_errors import DELETE_VERSIONS, access_hint, is_access_refused, is_unknown_call

OBJECTS_PER_REQUEST: Final = 500
MAX_PAGES: Final = 4 * MAX_LISTED_OBJECTS // OBJECTS_PER_REQUEST
"""Most pages of a listing of versions. An object of a bucket with versioning may have several."""


T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """The answer to one request of a listing, or a part of that answer. May be empty."""

    items: Sequence[T]
    is_last: bool


@dataclass(frozen=True)
class ObjectVersion:
    """A version of an object, or a delete marker, which has no size. Without versioning, an object's only version."""

    key: str
    size_bytes: int
    version_id: str
    is_marker: bool = False
    """A delete marker, which hides the versions of its key."""

    @property
    def is_versioned(self) -> bool:
        """Whether the bucket had versioning when the version was written."""
        return self.version_id != "null"


@dataclass(frozen=True)
class UnfinishedUpload:
    """An upload in parts that was neither completed nor aborted."""

    key: str
    upload_id: str


class DeletableObjects(ObjectStore):
    """An :class:`ObjectStore` that also deletes versions and aborts uploads."""

    def delete_batch(self, items: Sequence[ObjectInfo | ObjectVersion]) -> RefusedDeletions | None:
        """Delete up to 1000 objects, or 1000 versions, in one request. Returns what the store refused.

        Raises :class:`CallUnavailable` when the store refuses to delete versions at all.
        """
        identifiers = [self._identifier(item) for item in items]
        if not isinstance(items[0], ObjectVersion):
            return self._delete_many(identifiers)
        with self._call("delete", f"{len(items)} versions"), _unavailable_calls(DELETE_VERSIONS):
            return self._request_deletion(identifiers)

    def _identifier(self, item: ObjectInfo | ObjectVersion) -> dict[str, str]:
        version = {"VersionId": item.version_id} if isinstance(item, ObjectVersion) else {}
        return {"Key": self._full_key(item.key), **version}

    def list_versions(self, prefix: str) -> Iterator[ObjectVersion]:
        """All versions and delete markers below ``prefix``, also those of objects that a listing still shows.

        Raises :class:`CallUnavailable`.
        """
        for page in self.version_pages(prefix):
            yield from page.items

    def version_pages(self, prefix: str) -> Iterator[Page[ObjectVersion]]:
        """The pages of :meth:`list_versions`."""
        for page in self._pages("list_object_versions", prefix):
            versions: list[ObjectVersion] = []
            for entry in ("Versions", "DeleteMarkers"):
                for item in page.get(entry, ()):
                    key, version = item.get("Key", "").removeprefix(self._full_key("")), item.get("VersionId")
                    if version is None:
                        raise CallUnavailable("the store's list of versions gives no ids")
                    size, is_marker = item.get("Size", 0), entry == "DeleteMarkers"
                    versions.append(ObjectVersion(key, size, version, is_marker=is_marker))
            yield Page(versions, is_last=not page.get("IsTruncated"))

    def list_uploads(self) -> Iterator[UnfinishedUpload]:
        """All unfinished uploads below the root. Raises :class:`CallUnavailable`."""
        for page in self._pages("list_multipart_uploads", ""):
            for item in page.get("Uploads", ()):
                yield UnfinishedUpload(item.get("Key", "").removeprefix(self._full_key("")), item.get("UploadId", ""))

    def abort(self, upload: UnfinishedUpload) -> None:
        """Delete the parts of an upload. One that is gone is no error. Raises :class:`CallUnavailable`."""
        try:
            with self._call("abort", upload.key), _unavailable_calls():
                self._s3.abort_multipart_upload(**self._target(upload.key), UploadId=upload.upload_id)
        except ObjectMissing:
            return

    def _pages(
        self, listing: Literal["list_object_versions", "list_multipart_uploads"], prefix: str
    ) -> Iterator[dict[str, Any]]:
        arguments: dict[str, Any] = {"Bucket": self.config.bucket, "Prefix": self._full_key(prefix)}
        arguments["PaginationConfig"] = {"PageSize": OBJECTS_PER_REQUEST}
        pages: Iterator[Any] = iter(self._s3.get_paginator(listing).paginate(**arguments))
        for _ in range(MAX_PAGES):
            with self._call("list", prefix, answer_bytes=MAX_LISTING_PAGE_BYTES), _unavailable_calls():
                page = next(pages, None)
            if page is None:
                return
            yield page
        raise StoreError(f"list {prefix}: more than {MAX_PAGES} pages; delete what is not Aurora's")


@contextmanager
def _unavailable_calls(operation: str = "") -> Iterator[None]:
    """Raises :class:`CallUnavailable` for an answer that no repetition changes.

    ``operation``: whose right the message names. Empty: that of the operation that the store refused.
    """
    try:
        yield
    except ClientError as error:
        if is_unknown_call(error):
            raise CallUnavailable(f"{error.operation_name}: the store does not know this call") from error
        if is_access_refused(error) and not error.operation_name.startswith("AssumeRole"):
            hint = access_hint(operation or error.operation_name)
            raise CallUnavailable(f"{error.operation_name}: AccessDenied; {hint}") from error
        raise
