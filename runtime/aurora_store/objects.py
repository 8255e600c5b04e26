"""Objects in S3 below one root: create-once writes, verified reads, bounded retries.

Invariants: a caller never sees botocore's exceptions. A caller that passes a digest never gets other bytes. The only
conditional request is ``PutObject If-None-Match: *``, because many S3-compatible stores lack the others.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from aurora_protocol.pod_settings import StoreSettings
from aurora_store.errors import DigestMismatch, ObjectExists, ObjectMissing, StoreError, StoreUnsupported

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CHUNK_BYTES = 1 << 20
MAX_SINGLE_PUT_BYTES = 4 << 30
"""Largest object put in one request. S3 allows 5 GiB. An interrupted upload in parts may leave some parts behind."""
MULTIPART = TransferConfig(multipart_threshold=1 << 26, multipart_chunksize=1 << 26, max_concurrency=2)
log = logging.getLogger(__name__)


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
    """Owner id of the speculator that restored the root. None: the speculator that the root is named after."""

    def __repr__(self) -> str:
        return f"StoreConfig(bucket={self.bucket!r}, root={self.root!r}, endpoint={self.endpoint!r})"

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreConfig:
        """The store of a pod. boto3 finds the credentials itself (``AWS_*`` variables or workload identity)."""
        return cls(settings.bucket, settings.root, settings.endpoint, settings.region, owner=settings.owner)


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

    Every method raises :class:`StoreError` when the store refuses the call or cannot be reached. boto3 tries each
    request at most ``attempts`` times.
    """

    owner: str | None = None
    """Owner id that records carry. None: the speculator that the root is named after."""

    def __init__(self, config: StoreConfig, *, attempts: int = 5) -> None:
        self.config = config
        self._probe = f"probe/{secrets.token_hex(8)}"
        self._s3: S3Client = boto3.session.Session().client(
            "s3",
            endpoint_url=config.endpoint,
            region_name=config.region or os.environ.get("AWS_REGION") or "us-east-1",
            aws_access_key_id=config.access_key,
            aws_secret_access_key=config.secret_key,
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"mode": "standard", "max_attempts": attempts},
                signature_version="s3v4",
                s3={"addressing_style": "path" if config.endpoint else "auto"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def _full_key(self, key: str) -> str:
        return f"{self.config.root}/{key}"

    def _store_error(self, error: BotoCoreError | ClientError, call: str) -> StoreError:
        """The typed error for botocore's ``error``. ``call`` names the operation and the key."""
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code in ("NoSuchKey", "404") or (status == 404 and code != "NoSuchBucket"):
                return ObjectMissing(f"{call}: no such object")
            if status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
                return ObjectExists(f"{call}: another writer created the object first")
            hint = {
                "NoSuchBucket": "create the bucket",
                "AccessDenied": "check the credentials' rights on the bucket",
                "InvalidAccessKeyId": "check the access key",
                "SignatureDoesNotMatch": "check the secret key",
            }.get(code, "see the store's log")
            return StoreError(f"{call}: {code or status}; {hint}")
        return StoreError(f"{call}: {type(error).__name__}; check that {self.config.endpoint or 'S3'} can be reached")

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key``, replacing an older object. Above :data:`MAX_SINGLE_PUT_BYTES`, write in parts."""
        try:
            if len(data) <= MAX_SINGLE_PUT_BYTES:
                self._s3.put_object(Bucket=self.config.bucket, Key=self._full_key(key), Body=data)
            else:
                self._s3.upload_fileobj(io.BytesIO(data), self.config.bucket, self._full_key(key), Config=MULTIPART)
        except (BotoCoreError, ClientError) as error:
            raise self._store_error(error, f"put {key}") from error
        except boto3.exceptions.Boto3Error as error:
            raise StoreError(f"put {key}: {type(error).__name__}; see the store's log") from error

    def create(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key`` once.

        Raises :class:`ObjectExists` when the key holds other bytes. The call succeeds when the key holds the same
        bytes, because a retry after a lost answer must not look like a lost race.
        """
        try:
            self._s3.put_object(Bucket=self.config.bucket, Key=self._full_key(key), Body=data, IfNoneMatch="*")
        except (BotoCoreError, ClientError) as error:
            store_error = self._store_error(error, f"create {key}")
            if isinstance(store_error, ObjectExists) and self.get(key) == data:
                return
            raise store_error from error

    def upload(self, key: str, path: Path) -> None:
        """Upload a file, replacing an older object. A large file is uploaded in parts."""
        try:
            self._s3.upload_file(str(path), self.config.bucket, self._full_key(key))
        except (BotoCoreError, ClientError) as error:
            raise self._store_error(error, f"upload {key}") from error
        except boto3.exceptions.Boto3Error as error:
            raise StoreError(f"upload {key}: {type(error).__name__}; see the store's log") from error

    def get(self, key: str, sha256: str | None = None) -> bytes:
        """The bytes at ``key``, verified when ``sha256`` is given.

        Raises :class:`ObjectMissing` and :class:`DigestMismatch`.
        """
        try:
            data = self._s3.get_object(Bucket=self.config.bucket, Key=self._full_key(key))["Body"].read()
        except (BotoCoreError, ClientError) as error:
            raise self._store_error(error, f"get {key}") from error
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DigestMismatch(f"get {key}: the digest differs from its manifest")
        return data

    def download(self, key: str, path: Path, sha256: str) -> None:
        """Download ``key`` to ``path``, readable for all users. The file appears only when its digest is right.

        Raises :class:`ObjectMissing` and :class:`DigestMismatch`.
        """
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        digest = hashlib.sha256()
        try:
            body = self._s3.get_object(Bucket=self.config.bucket, Key=self._full_key(key))["Body"]
            with part.open("wb") as file:
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DigestMismatch(f"download {key}: the digest differs from its manifest")
            part.chmod(0o644)
            part.rename(path)
        except (BotoCoreError, ClientError) as error:
            raise self._store_error(error, f"download {key}") from error
        finally:
            part.unlink(missing_ok=True)

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Keys below ``prefix``, in lexical order, that are greater than ``after``."""
        return (item.key for item in self.list_objects(prefix, after=after))

    def list_objects(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """The objects whose keys :meth:`list` returns."""
        arguments: dict[str, Any] = {"Bucket": self.config.bucket, "Prefix": self._full_key(prefix)}
        if after:
            arguments["StartAfter"] = self._full_key(after)
        try:
            for page in self._s3.get_paginator("list_objects_v2").paginate(**arguments):
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self.config.root + "/")
                    yield ObjectInfo(key, item["Size"], item["LastModified"])
        except (BotoCoreError, ClientError) as error:
            raise self._store_error(error, f"list {prefix}") from error

    def delete(self, key: str) -> None:
        """Delete ``key``. A missing object is no error."""
        try:
            self._s3.delete_object(Bucket=self.config.bucket, Key=self._full_key(key))
        except (BotoCoreError, ClientError) as error:
            raise self._store_error(error, f"delete {key}") from error

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete up to 1000 objects in one request. Missing objects are no error."""
        objects: Any = [{"Key": self._full_key(key)} for key in keys]
        try:
            answer = self._s3.delete_objects(Bucket=self.config.bucket, Delete={"Objects": objects, "Quiet": True})
        except (BotoCoreError, ClientError) as error:
            raise self._store_error(error, f"delete {len(keys)} objects") from error
        if refused := answer.get("Errors"):
            code, key = refused[0].get("Code", ""), refused[0].get("Key", "")
            raise StoreError(f"delete {len(keys)} objects: {len(refused)} were refused, the first one {key}: {code}")

    def ensure_bucket(self) -> None:
        """Create the bucket when it is missing: an embedded store starts empty."""
        try:
            self._s3.head_bucket(Bucket=self.config.bucket)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
                raise self._store_error(error, f"look for bucket {self.config.bucket}") from error
            try:
                self._s3.create_bucket(Bucket=self.config.bucket)
            except (BotoCoreError, ClientError) as create_error:
                raise self._store_error(create_error, f"create bucket {self.config.bucket}") from create_error
        except BotoCoreError as error:
            raise self._store_error(error, f"look for bucket {self.config.bucket}") from error

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
