"""Objects in S3 below one root: create-once writes, verified reads, bounded retries.

Invariants: a caller never sees botocore's exceptions. A caller that passes a digest never gets other bytes. The only
conditional request is ``PutObject If-None-Match: *``, because many S3-compatible stores lack the others. No object is
read into memory beyond its limit. A call ends with boto3's timeouts and retries, and with the caller's deadline
(:mod:`aurora_store.deadline`).
"""

from __future__ import annotations

import hashlib
import io
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from botocore.response import StreamingBody

from aurora_protocol.pod_settings import StoreSettings
from aurora_store.deadline import raise_if_over
from aurora_store.errors import (
    DigestMismatch,
    ObjectExists,
    ObjectMissing,
    ObjectRefused,
    ObjectTooLarge,
    StoreError,
    StoreUnsupported,
    bounded_text,
)
from aurora_store.keys import Keys
from aurora_store.s3_client import (
    FAILURES,
    SHARED_CLIENTS,
    ClientSettings,
    is_access_refused,
    is_beyond_end,
    is_write_conflict,
    refuse_link_local,
    store_error,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CHUNK_BYTES = 1 << 20
MAX_RECORD_BYTES = 1 << 20
"""Largest record. Larger objects hold data, and their size is in the record that names them."""
MAX_LISTED_OBJECTS = 4_000_000
"""Most objects of one listing: two for each shard that 2Ti of traces may hold."""
MIN_KEYS_PER_PAGE = 100
"""A listing of at most n objects may have n divided by this number of pages, and two more. S3 sends 1000 on a page."""
TIMEOUT_SECONDS: Final = 20.0
"""Longest wait for the next bytes of an answer, unless a process sets another one."""
MAX_CONFLICTS: Final = 3
CONFLICT_PAUSE_SECONDS: Final = 0.4
MAX_SINGLE_PUT_BYTES = 4 << 30
"""Largest object put in one request. S3 allows 5 GiB. An interrupted upload in parts may leave some parts behind."""
TRANSFER = TransferConfig(multipart_threshold=1 << 26, multipart_chunksize=1 << 26, use_threads=False)
"""How a file is uploaded. The calling thread sends the parts one after the other, because the deadline is its own."""


@dataclass(frozen=True)
class StoreConfig:
    """The bucket and the root of one speculator.

    Without ``access_key`` and ``secret_key``, boto3 looks for credentials itself. ``repr`` never shows them.
    """

    bucket: str
    root: str
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    owner: str | None = None
    """Owner id of the speculator. Needed only by processes of pods, which write while it owns the root."""
    refuses_link_local: bool = False
    """Whether ``endpoint`` may not lead to a link-local address, because somebody else chose it."""

    def __repr__(self) -> str:
        return f"StoreConfig(bucket={self.bucket!r}, root={self.root!r}, endpoint={self.endpoint!r})"

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreConfig:
        """The store of a pod. boto3 finds the credentials itself (a mounted Secret or workload identity).

        Every setting is a field of the same name here.
        """
        return cls(**dict(settings))


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

    Every method raises :class:`StoreError` when the store refuses the call or cannot be reached, and
    :class:`StoreInterrupted` when the caller's deadline is over. boto3 tries each request at most ``attempts`` times.
    """

    def __init__(
        self,
        config: StoreConfig,
        *,
        attempts: int = 5,
        timeout_seconds: float = TIMEOUT_SECONDS,
        on_request: Callable[[str], None] = lambda operation: None,
    ) -> None:
        """``on_request`` is called with the operation's name before each call. Blocks.

        Raises :class:`StoreError` when boto3 refuses the settings, for example an endpoint that is no URL, and
        :class:`AddressRefused`.
        """
        self.config = config
        self._probe = f"{Keys.PROBE}{secrets.token_hex(8)}"
        self._on_request = on_request
        if config.endpoint and config.refuses_link_local:
            refuse_link_local(config.endpoint)
        settings = ClientSettings(
            config.endpoint, config.region, config.access_key, config.secret_key, attempts, timeout_seconds
        )
        self._s3: S3Client = SHARED_CLIENTS.client(settings)

    def _full_key(self, key: str) -> str:
        return f"{self.config.root}/{key}"

    def _target(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.config.bucket, "Key": self._full_key(key)}

    @contextmanager
    def _call(self, operation: str, subject: str) -> Iterator[None]:
        """One call. Its failures become :class:`StoreError`.

        Args:
            operation: for metrics, and with ``subject`` for errors: "get", "registry/00000001.json".
        """
        raise_if_over()
        self._on_request(operation)
        try:
            yield
        except FAILURES as error:
            raise store_error(error, f"{operation} {subject}", self.config.endpoint or "S3") from error

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key``, replacing an older object. Above :data:`MAX_SINGLE_PUT_BYTES`, write in parts."""
        with self._call("put", key):
            if len(data) <= MAX_SINGLE_PUT_BYTES:
                self._s3.put_object(**self._target(key), Body=data)
            else:
                self._s3.upload_fileobj(io.BytesIO(data), **self._target(key), Config=TRANSFER)

    def create(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key`` once.

        Raises :class:`ObjectExists` when the key holds other bytes. The call succeeds when the key holds the same
        bytes, because a retry after a lost answer must not look like a lost race.
        """
        try:
            self._put_new(key, lambda: io.BytesIO(data))
        except ObjectExists:
            if not self._holds(key, data):
                raise

    def _put_new(self, key: str, open_body: Callable[[], BinaryIO]) -> None:
        """Put an object at a key that must be free. ``open_body`` is called for each try.

        S3 refuses a conditional write while another write of the key is under way. Often the other write is this
        process's own, and its answer was lost. So the write is tried again. Raises :class:`ObjectExists`.
        """
        for conflicts_left in reversed(range(MAX_CONFLICTS)):
            with self._call("create", key), open_body() as body:
                try:
                    self._s3.put_object(**self._target(key), Body=body, IfNoneMatch="*")
                except ClientError as error:
                    if not (conflicts_left and is_write_conflict(error)):
                        raise
                else:
                    return
            time.sleep(CONFLICT_PAUSE_SECONDS)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get(key, max_bytes=len(data)) == data
        except ObjectTooLarge:
            return False

    def upload(self, key: str, path: Path) -> None:
        """Upload a file, replacing an older object. A large file is uploaded in parts."""
        with self._call("upload", key):
            self._s3.upload_file(str(path), **self._target(key), Config=TRANSFER)

    def create_file(self, key: str, path: Path) -> None:
        """Write a file of at most :data:`MAX_SINGLE_PUT_BYTES` at ``key`` once. Only a block of the file is in memory.

        Raises :class:`ObjectExists`.
        """
        self._put_new(key, lambda: path.open("rb"))

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        """The bytes at ``key``, verified when ``sha256`` is given.

        Raises :class:`ObjectMissing`, :class:`ObjectTooLarge` (above ``max_bytes``) and :class:`DigestMismatch`.
        """
        with self._call("get", key), self._chunks(key, max_bytes) as chunks:
            data = b"".join(chunks)
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
        with self._call("get", key):
            try:
                with self._chunks(key, size, Range=byte_range) as chunks:
                    data = b"".join(chunks)
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
                self._call("download", key),
                self._chunks(key, max_bytes) as chunks,
                part.open("wb") as file,
            ):
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DigestMismatch(f"download {key}: the digest differs from its manifest")
            part.chmod(0o644)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _chunks(self, key: str, max_bytes: int, **options: Any) -> Iterator[Iterator[bytes]]:
        """The blocks of an object.

        Raises :class:`ObjectTooLarge` when the store announces or sends more than ``max_bytes``, and
        :class:`ObjectMissing`.
        """
        try:
            answer = self._s3.get_object(Bucket=self.config.bucket, Key=self._full_key(key), **options)
        except ClientError as error:
            if is_access_refused(error) and self._is_absent(key):
                raise ObjectMissing(f"get {key}: no such object") from error
            raise
        with closing(answer["Body"]) as body:
            _require_size(key, answer.get("ContentLength", 0), max_bytes)
            yield _bounded(body, key, max_bytes)

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
            with self._call("list", prefix):
                page = next(pages, None)
                listed = [
                    ObjectInfo(item["Key"].removeprefix(self.config.root + "/"), item["Size"], item["LastModified"])
                    for item in (page.get("Contents", []) if page else ())
                ]
            if page is None:
                return
            count += len(listed)
            if count > limit:
                break
            yield from listed
        raise StoreError(f"list {prefix}: more than {limit} objects or {max_pages} pages; delete what is not Aurora's")

    def delete(self, key: str) -> None:
        """Delete ``key``. A missing object is no error."""
        with self._call("delete", key):
            self._s3.delete_object(Bucket=self.config.bucket, Key=self._full_key(key))

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
        except ObjectRefused as refused:
            try:
                next(self.list(""), None)
            except StoreError as error:
                raise error if isinstance(error, ObjectRefused) else refused from error

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


def _bounded(body: StreamingBody, key: str, max_bytes: int) -> Iterator[bytes]:
    """The blocks of ``body``. Raises :class:`ObjectTooLarge` and :class:`StoreInterrupted`."""
    received = 0
    for chunk in body.iter_chunks(min(CHUNK_BYTES, max_bytes + 1)):
        raise_if_over()
        received += len(chunk)
        _require_size(key, received, max_bytes)
        yield chunk


def _require_size(key: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        text = f"get {key}: the object has more than {max_bytes} bytes; find out who else writes below the root"
        raise ObjectTooLarge(bounded_text(text))
