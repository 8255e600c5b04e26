"""Objects in S3 below one root: create-once writes, verified reads, bounded retries.

Invariants: a caller never sees botocore's exceptions. A caller that passes a digest never gets other bytes. The only
conditional request is ``PutObject If-None-Match: *``, because many S3-compatible stores lack the others. Every call has
a total deadline that includes its retries; a listing makes one call for each page. No answer is read into memory beyond
its limit.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from botocore.response import StreamingBody
from urllib3.exceptions import HTTPError

from aurora_store.errors import (
    AccessRefused,
    DigestMismatch,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreUnsupported,
)
from aurora_store.s3_calls.batch_deletion import RefusedDeletions, deletion_error, refused_deletions
from aurora_store.s3_calls.call_errors import is_access_refused, is_beyond_end, store_error
from aurora_store.s3_calls.call_limits import CallLimitReached, CallLimits, call_limits, total_deadline
from aurora_store.s3_calls.encryption import encryption_arguments
from aurora_store.s3_calls.s3_clients import SHARED_CLIENTS, ClientSettings, RedirectRefused
from aurora_store.s3_calls.write_conflicts import repeat_after_conflict
from aurora_store.store_config import StoreConfig

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

CHUNK_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 20
"""Largest record. Larger objects hold data, and their size is in the record that names them."""
MAX_ANSWER_BYTES = 1 << 20
"""Largest answer that holds no object: an error, or an empty answer."""
MAX_LISTING_PAGE_BYTES = 4 << 20
"""Largest page of a listing. A page has at most 1000 keys of at most 1024 bytes."""
MAX_LISTED_OBJECTS = 4_000_000
"""Most objects of one listing: two for each shard that 2Ti of traces may hold."""
MIN_KEYS_PER_PAGE = 100
"""A listing of at most n objects may have n divided by this number of pages, and two more. S3 sends 1000 on a page."""
CALL_SECONDS = 60.0
"""Total deadline of a call, retries included. A large object has more time."""
MIN_BYTES_PER_SECOND = 64 << 10
"""Slowest transfer of a large object: each byte above a record's largest size adds to the deadline at this rate."""
MAX_SINGLE_PUT_BYTES = 4 << 30
"""Largest object put in one request. S3 allows 5 GiB. An interrupted upload in parts may leave some parts behind."""
TRANSFER = TransferConfig(multipart_threshold=1 << 26, multipart_chunksize=1 << 26, use_threads=False)
"""How a file is uploaded. The calling thread sends the parts one after the other, because the deadline is its own."""
_FAILURES = (
    BotoCoreError,
    ClientError,
    boto3.exceptions.Boto3Error,
    ResponseParserError,
    RedirectRefused,
    CallLimitReached,
    HTTPError,
    ValueError,
)
"""Everything that botocore raises. It raises HTTPError while it reads the text of an error, and ValueError when a
number or a date in the answer's headers does not parse."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing. ``modified`` is the last write by the store's clock."""

    key: str
    size_bytes: int
    modified: datetime


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class ObjectStore:
    """Objects of one speculator. All keys are relative to its root. Thread-safe, because boto3's clients are.

    Every method raises :class:`StoreError` when the store refuses the call, cannot be reached, or does not answer in
    time. boto3 tries each request at most ``attempts`` times.
    """

    owner: str | None = None
    """Owner id that records carry. None: the speculator that the root is named after."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        attempts: int = 5,
        call_seconds: float = CALL_SECONDS,
        on_request: Callable[[str], None] = lambda operation: None,
    ) -> None:
        """``on_request`` is called with the operation's name before each HTTP request.

        Raises :class:`StoreError` when boto3 refuses the settings, for example an endpoint that is no URL.
        """
        self.config = config
        self._probe = f"probe/{secrets.token_hex(8)}"
        self._call_seconds, self._on_request = call_seconds, on_request
        self._encryption = encryption_arguments(config.encryption)
        addresses = config.addresses if config.endpoint else None
        settings = ClientSettings(
            config.endpoint, config.region, config.access_key, config.secret_key, attempts, addresses
        )
        self._s3: S3Client = SHARED_CLIENTS.client(settings)

    def _full_key(self, key: str) -> str:
        return f"{self.config.root}/{key}"

    def _target(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.config.bucket, "Key": self._full_key(key)}

    @contextmanager
    def _call(
        self, operation: str, subject: str, *, answer_bytes: int = MAX_ANSWER_BYTES, object_bytes: int = 0
    ) -> Iterator[CallLimits]:
        """One call with its limits. Its failures become :class:`StoreError`.

        Args:
            operation: for metrics, and with ``subject`` for errors: "get", "registry/00000001.json".
            object_bytes: size of an object that is transferred. A large object has more time.
        """
        call, seconds = f"{operation} {subject}", self._seconds_for(object_bytes)
        with call_limits(seconds, answer_bytes, lambda: self._on_request(operation)) as limits:
            try:
                yield limits
            except _FAILURES as error:
                raise store_error(error, call, limits, self.config.endpoint or "S3") from error

    def _seconds_for(self, object_bytes: int) -> float:
        """The total deadline of a call that transfers an object of ``object_bytes``."""
        return self._call_seconds + max(0, object_bytes - MAX_RECORD_BYTES) / MIN_BYTES_PER_SECOND

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key``, replacing an older object. Above :data:`MAX_SINGLE_PUT_BYTES`, write in parts."""
        with self._call("put", key, object_bytes=len(data)):
            if len(data) <= MAX_SINGLE_PUT_BYTES:
                self._s3.put_object(**self._target(key), **self._encryption, Body=data)
            else:
                self._s3.upload_fileobj(
                    io.BytesIO(data), **self._target(key), ExtraArgs=self._encryption, Config=TRANSFER
                )

    def create(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key`` once.

        Raises :class:`ObjectExists` when the key holds other bytes. The call succeeds when the key holds the same
        bytes, because a retry after a lost answer must not look like a lost race. The write and the read that compares
        share one deadline.
        """
        with total_deadline(self._seconds_for(len(data))):
            try:
                self._put_new(key, len(data), lambda: io.BytesIO(data))
            except ObjectExists:
                if not self._holds(key, data):
                    raise

    def _put_new(self, key: str, size: int, open_body: Callable[[], BinaryIO]) -> None:
        """Put an object of ``size`` bytes at a key that must be free. Raises :class:`ObjectExists`.

        ``open_body`` is called for each try.
        """

        def put() -> None:
            with open_body() as body:
                self._s3.put_object(**self._target(key), **self._encryption, Body=body, IfNoneMatch="*")

        with self._call("create", key, object_bytes=size) as limits:
            repeat_after_conflict(put, limits)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get(key, max_bytes=len(data)) == data
        except ObjectTooLarge:
            return False

    def upload(self, key: str, path: Path) -> None:
        """Upload a file, replacing an older object. A large file is uploaded in parts."""
        with self._call("upload", key, object_bytes=path.stat().st_size):
            self._s3.upload_file(str(path), **self._target(key), ExtraArgs=self._encryption, Config=TRANSFER)

    def create_file(self, key: str, path: Path) -> None:
        """Write a file at ``key`` once. Only a block of the file is in memory.

        Raises :class:`ObjectExists`. Above :data:`MAX_SINGLE_PUT_BYTES`, the file replaces an older object.
        """
        if (size := path.stat().st_size) > MAX_SINGLE_PUT_BYTES:
            return self.upload(key, path)
        return self._put_new(key, size, lambda: path.open("rb"))

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        """The bytes at ``key``, verified when ``sha256`` is given.

        Raises :class:`ObjectMissing`, :class:`ObjectTooLarge` (above ``max_bytes``) and :class:`DigestMismatch`.
        """
        with self._call("get", key, object_bytes=max_bytes) as limits, self._open(key, max_bytes, limits) as body:
            data = body.read()
            limits.require_bytes(len(data), max_bytes)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DigestMismatch(f"get {key}: the digest differs from its manifest")
        return data

    def get_range(self, key: str, first: int, size: int) -> bytes:
        """``size`` bytes of the object at ``key`` from byte ``first``, fewer or none at the object's end. Not verified.

        S3 has no range of no bytes, so nothing is asked for when ``size`` is 0.

        Raises :class:`ObjectMissing`, and :class:`ObjectTooLarge` when the store ignores the range.
        """
        if size == 0:
            return b""
        byte_range = f"bytes={first}-{first + size - 1}"
        with self._call("get", key, object_bytes=size) as limits:
            try:
                with self._open(key, size, limits, Range=byte_range) as body:
                    data = body.read()
                    limits.require_bytes(len(data), size)
            except ClientError as error:
                if not is_beyond_end(error):
                    raise
                return b""
        return data

    def download(self, key: str, path: Path, sha256: str, *, max_bytes: int) -> None:
        """Download ``key`` to ``path``, readable for all users. The file appears only when its digest is right.

        Raises :class:`ObjectMissing`, :class:`ObjectTooLarge` (above ``max_bytes``) and :class:`DigestMismatch`.
        """
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        digest = hashlib.sha256()
        try:
            with (
                self._call("download", key, object_bytes=max_bytes) as limits,
                self._open(key, max_bytes, limits) as body,
                part.open("wb") as file,
            ):
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DigestMismatch(f"download {key}: the digest differs from its manifest")
            part.chmod(0o644)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _open(self, key: str, max_bytes: int, limits: CallLimits, **options: Any) -> Iterator[StreamingBody]:
        """The body of an object. A reader gets little more than ``max_bytes`` of it.

        Raises :class:`CallLimitReached` when the store announces a larger object, and :class:`ObjectMissing`.
        """
        try:
            answer = self._s3.get_object(Bucket=self.config.bucket, Key=self._full_key(key), **options)
        except ClientError as error:
            if is_access_refused(error) and self._is_absent(key):
                raise ObjectMissing(f"get {key}: no such object") from error
            raise
        with closing(answer["Body"]) as body:
            limits.begin_object(max_bytes, answer.get("ContentLength", 0))
            yield body

    def _is_absent(self, key: str) -> bool:
        """Whether a listing shows that there is no object at ``key``. False when the listing is refused too.

        Amazon S3 answers AccessDenied for a missing object to credentials that may not list the whole bucket.
        """
        full_key = self._full_key(key)
        try:
            page = self._s3.list_objects_v2(Bucket=self.config.bucket, Prefix=full_key, MaxKeys=1)
        except ClientError:
            return False
        return all(item.get("Key") != full_key for item in page.get("Contents", []))

    def list(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[str]:
        """Keys below ``prefix``, in lexical order, that are greater than ``after``.

        Raises :class:`StoreError` when there are more than ``limit``.
        """
        return (item.key for item in self.list_objects(prefix, after=after, limit=limit))

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        """The objects whose keys :meth:`list` returns."""
        arguments: dict[str, Any] = {"Bucket": self.config.bucket, "Prefix": self._full_key(prefix)}
        if after:
            arguments["StartAfter"] = self._full_key(after)
        pages = iter(self._s3.get_paginator("list_objects_v2").paginate(**arguments))
        count, max_pages = 0, limit // MIN_KEYS_PER_PAGE + 2
        for _ in range(max_pages):
            with self._call("list", prefix, answer_bytes=MAX_LISTING_PAGE_BYTES):
                page = next(pages, None)
            if page is None:
                return
            listed = self._listed(prefix, page)
            count += len(listed)
            if count > limit:
                break
            yield from listed
        raise StoreError(f"list {prefix}: more than {limit} objects or {max_pages} pages; delete what is not Aurora's")

    def _listed(self, prefix: str, page: ListObjectsV2OutputTypeDef) -> tuple[ObjectInfo, ...]:
        try:
            return tuple(
                ObjectInfo(item["Key"].removeprefix(self.config.root + "/"), item["Size"], item["LastModified"])
                for item in page.get("Contents", [])
            )
        except KeyError as error:
            raise StoreError(f"list {prefix}: the answer lacks {error}; check that the store is an S3 store") from error

    def delete(self, key: str) -> None:
        """Delete ``key``. A missing object is no error."""
        with self._call("delete", key):
            self._s3.delete_object(Bucket=self.config.bucket, Key=self._full_key(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete up to 1000 objects in one request. Missing objects are no error.

        Raises :class:`StoreError` with the first key that the store refuses. The others are deleted.
        """
        refused = self._delete_many([{"Key": self._full_key(key)} for key in keys])
        if refused is not None:
            raise deletion_error("" if refused.first is None else keys[refused.first], refused.count, refused.code)

    def _delete_many(self, objects: Sequence[dict[str, str]]) -> RefusedDeletions | None:
        """Delete up to 1000 objects or versions in one request. Returns what the store refused."""
        with self._call("delete", f"{len(objects)} objects"):
            return self._request_deletion(objects)

    def _request_deletion(self, objects: Sequence[dict[str, str]]) -> RefusedDeletions | None:
        deletion: Any = {"Objects": objects, "Quiet": True}
        return refused_deletions(objects, self._s3.delete_objects(Bucket=self.config.bucket, Delete=deletion))

    def ensure_bucket(self) -> None:
        """Create the bucket when it is missing: an embedded store starts empty.

        Credentials with rights on the root only may not look at the bucket. A listing of the root then shows that the
        bucket is there.
        """
        try:
            with self._call("head", f"bucket {self.config.bucket}"):
                self._s3.head_bucket(Bucket=self.config.bucket)
        except ObjectMissing:
            with self._call("create", f"bucket {self.config.bucket}"):
                self._s3.create_bucket(Bucket=self.config.bucket)
        except AccessRefused as refused:
            try:
                next(self.list(""), None)
            except StoreError as error:
                raise error if isinstance(error, AccessRefused) else refused from error

    def probe(self) -> None:
        """Prove that the store writes, deletes and keeps create-once.

        Raises :class:`StoreUnsupported` when the store overwrites a create-once object. Safe to repeat: the probe
        always uses the same key, so a store that cannot delete is left with a single object.
        """
        key = self._probe
        self.create(key, b"1")
        try:
            self.create(key, b"2")
            keeps_create_once = False
        except ObjectExists:
            keeps_create_once = True
        try:
            self.delete(key)
        except StoreError as error:
            raise StoreError(f"{error}; allow s3:DeleteObject, or the store grows without limit") from error
        if not keeps_create_once:
            raise StoreUnsupported(
                f"bucket {self.config.bucket} ignores If-None-Match on PutObject; use a store with conditional writes"
            )
