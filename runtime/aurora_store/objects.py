"""Objects in S3 below one root: create-once writes, verified reads, bounded retries.

Invariant: a caller never sees botocore's exceptions, and never bytes whose digest was promised and not checked.
Only ``PutObject If-None-Match: *`` is relied upon; many S3-compatible stores lack the rest.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
from collections.abc import Iterator
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

CHUNK = 1 << 20
SINGLE = 4 << 30
"""Bytes that are put at once: S3 takes 5 GiB, and what is put in parts may leave some of them behind."""
PARTS = TransferConfig(multipart_threshold=1 << 26, multipart_chunksize=1 << 26, max_concurrency=2)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreConfig:
    """Where a speculator's root is. Credentials come from ``access_key``/``secret_key`` or boto3's own chain."""

    bucket: str
    root: str
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None

    def __repr__(self) -> str:
        return f"StoreConfig(bucket={self.bucket!r}, root={self.root!r}, endpoint={self.endpoint!r})"

    @classmethod
    def of(cls, settings: StoreSettings) -> StoreConfig:
        """A pod's store; credentials are boto3's own (``AWS_*`` or workload identity)."""
        return cls(settings.bucket, settings.root, settings.endpoint, settings.region)


@dataclass(frozen=True)
class Listed:
    """One object of a listing; ``modified`` is the time of its last write by the store's clock."""

    key: str
    size: int
    modified: datetime


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class ObjectStore:
    """Objects of one speculator. All keys are relative to the root. Thread-safe, as boto3's clients are."""

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

    def _key(self, key: str) -> str:
        return f"{self.config.root}/{key}"

    def _fault(self, error: BotoCoreError | ClientError, what: str) -> StoreError:
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code in ("NoSuchKey", "404") or (status == 404 and code != "NoSuchBucket"):
                return ObjectMissing(f"{what}: no such object")
            if status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict"):
                return ObjectExists(f"{what}: exists already")
            hint = {
                "NoSuchBucket": "create the bucket",
                "AccessDenied": "check the credentials' rights on the bucket",
                "InvalidAccessKeyId": "check the access key",
                "SignatureDoesNotMatch": "check the secret key",
            }.get(code, "see the store's log")
            return StoreError(f"{what}: {code or status}; {hint}")
        return StoreError(f"{what}: {type(error).__name__}; check that {self.config.endpoint or 'S3'} can be reached")

    def put(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key`` (in parts beyond :data:`SINGLE`), replacing what is there."""
        try:
            if len(data) <= SINGLE:
                self._s3.put_object(Bucket=self.config.bucket, Key=self._key(key), Body=data)
            else:
                self._s3.upload_fileobj(io.BytesIO(data), self.config.bucket, self._key(key), Config=PARTS)
        except (BotoCoreError, ClientError) as error:
            raise self._fault(error, f"put {key}") from error
        except boto3.exceptions.Boto3Error as error:
            raise StoreError(f"put {key}: {type(error).__name__}") from error

    def create(self, key: str, data: bytes) -> None:
        """Write ``data`` at ``key`` once.

        Raises :class:`ObjectExists` when other bytes are there. When the very same bytes are there the call succeeds:
        a retry after a lost answer must not look like a lost race.
        """
        try:
            self._s3.put_object(Bucket=self.config.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")
        except (BotoCoreError, ClientError) as error:
            fault = self._fault(error, f"create {key}")
            if isinstance(fault, ObjectExists) and self.get(key) == data:
                return
            raise fault from error

    def upload(self, key: str, path: Path) -> None:
        """Upload a file (multipart when it is large), replacing what is there."""
        try:
            self._s3.upload_file(str(path), self.config.bucket, self._key(key))
        except (BotoCoreError, ClientError) as error:
            raise self._fault(error, f"upload {key}") from error
        except boto3.exceptions.Boto3Error as error:
            raise StoreError(f"upload {key}: {type(error).__name__}") from error

    def get(self, key: str, sha256: str | None = None) -> bytes:
        """The bytes at ``key``; with ``sha256``, verified. Raises :class:`ObjectMissing`, :class:`DigestMismatch`."""
        try:
            data = self._s3.get_object(Bucket=self.config.bucket, Key=self._key(key))["Body"].read()
        except (BotoCoreError, ClientError) as error:
            raise self._fault(error, f"get {key}") from error
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DigestMismatch(f"get {key}: the digest differs from its manifest")
        return data

    def download(self, key: str, path: Path, sha256: str) -> None:
        """Fetch ``key`` into ``path``, world-readable and only when its digest is right (atomic rename)."""
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        digest = hashlib.sha256()
        try:
            body = self._s3.get_object(Bucket=self.config.bucket, Key=self._key(key))["Body"]
            with part.open("wb") as file:
                for chunk in body.iter_chunks(CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DigestMismatch(f"download {key}: the digest differs from its manifest")
            part.chmod(0o644)
            part.rename(path)
        except (BotoCoreError, ClientError) as error:
            raise self._fault(error, f"download {key}") from error
        finally:
            part.unlink(missing_ok=True)

    def list(self, prefix: str, *, after: str = "") -> Iterator[str]:
        """Keys below ``prefix`` in lexical order, those greater than ``after``."""
        return (item.key for item in self.listed(prefix, after=after))

    def listed(self, prefix: str, *, after: str = "") -> Iterator[Listed]:
        """What :meth:`list` gives the keys of."""
        arguments: dict[str, Any] = {"Bucket": self.config.bucket, "Prefix": self._key(prefix)}
        if after:
            arguments["StartAfter"] = self._key(after)
        try:
            for page in self._s3.get_paginator("list_objects_v2").paginate(**arguments):
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self.config.root + "/")
                    yield Listed(key, item["Size"], item["LastModified"])
        except (BotoCoreError, ClientError) as error:
            raise self._fault(error, f"list {prefix}") from error

    def delete(self, key: str) -> None:
        """Delete ``key``; deleting what is not there is no error."""
        try:
            self._s3.delete_object(Bucket=self.config.bucket, Key=self._key(key))
        except (BotoCoreError, ClientError) as error:
            raise self._fault(error, f"delete {key}") from error

    def ensure_bucket(self) -> None:
        """Create the bucket when it is missing (embedded stores start empty)."""
        try:
            self._s3.head_bucket(Bucket=self.config.bucket)
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
                raise self._fault(error, f"bucket {self.config.bucket}") from error
            try:
                self._s3.create_bucket(Bucket=self.config.bucket)
            except (BotoCoreError, ClientError) as again:
                raise self._fault(again, f"create bucket {self.config.bucket}") from again
        except BotoCoreError as error:
            raise self._fault(error, f"bucket {self.config.bucket}") from error

    def probe(self) -> None:
        """Prove that the store can be written, deletes, and keeps create-once.

        Raises :class:`StoreUnsupported` when it does not keep the last, :class:`StoreError` otherwise. Safe to repeat:
        one that never deletes is left with a single object, however often it is asked.
        """
        key = self._probe
        self.create(key, b"1")
        try:
            self.create(key, b"2")
            once = False
        except ObjectExists:
            once = True
        try:
            self.delete(key)
        except StoreError as error:
            raise StoreError(f"{error}; without deletes (s3:DeleteObject) the store would grow for ever") from error
        if not once:
            raise StoreUnsupported(
                f"bucket {self.config.bucket} ignores If-None-Match on PutObject; use a store with conditional writes"
            )
