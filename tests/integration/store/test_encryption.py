"""Every write asks for the encryption of the spec: on a real server for SSE-S3, and on a fake that records for SSE-KMS.

SeaweedFS encrypts with SSE-KMS only beside a key management service, so a fake store shows the headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from boto3.s3.transfer import TransferConfig

from aurora_api.v1alpha1.store import Encryption
from aurora_operator.observe.secret_values import SecretReader
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_operator.observe.store.store_reader import StoreNeeds
from aurora_protocol.pod_settings import StoreSettings
from aurora_store import ObjectStore, StoreConfig
from aurora_store import objects as objects_module
from aurora_store.store_policy import StorePolicy
from tests.assets.faulty_store import Request, faulty_store
from tests.assets.s3 import S3, seaweedfs
from tests.integration.store.roles import operators_reader
from tests.unit.operator.observe.store.test_store_access import KEYS, FakeApi
from tests.unit.operator.worlds import OWNER, channel, spec

SSE_S3, SSE_KMS = {"type": "SSE-S3"}, {"type": "SSE-KMS", "kmsKeyId": "alias/aurora"}
HEADERS = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id")
LARGE = bytes(6 << 20)

WRITES: dict[str, Callable[[ObjectStore, Path], None]] = {
    "put": lambda objects, _: objects.put("put", b"small"),
    "create": lambda objects, _: objects.create("create", b"small"),
    "create_file": lambda objects, file: objects.create_file("create_file", file),
    "upload": lambda objects, file: objects.upload("upload", file),
}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        ObjectStore(server.config()).ensure_bucket()
        yield server


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is uploaded in parts."""
    monkeypatch.setattr(objects_module, "TRANSFER", TransferConfig(multipart_threshold=5 << 20, use_threads=False))
    file = tmp_path / "large"
    file.write_bytes(LARGE)
    return file


def encrypted(config: StoreConfig, encryption: dict[str, str]) -> StoreConfig:
    return replace(config, encryption=Encryption.model_validate(encryption))


def algorithm(objects: ObjectStore, key: str) -> str | None:
    """How the server says that it encrypted an object."""
    client: Any = objects._s3
    found: str | None = client.head_object(Bucket=objects.config.bucket, Key=f"{objects.config.root}/{key}").get(
        "ServerSideEncryption"
    )
    return found


@pytest.mark.parametrize("write", WRITES)
def test_what_a_pod_writes_is_encrypted_by_a_real_server_and_reads_as_before(s3: S3, large: Path, write: str) -> None:
    plain = ObjectStore(s3.config(root="plain"))
    asking = ObjectStore(encrypted(s3.config(root="encrypted"), SSE_S3))
    for objects, expected in ((asking, "AES256"), (plain, None)):
        WRITES[write](objects, large)
        assert algorithm(objects, write) == expected
        assert objects.get(write, max_bytes=len(LARGE)) == (b"small" if write in ("put", "create") else LARGE)


def test_what_the_operator_writes_is_encrypted_by_a_real_server(s3: S3) -> None:
    reader = operators_reader(encrypted(s3.config(root="aurora/default/chat-01234567"), SSE_S3))
    assert reader.read(StoreNeeds()).ok
    reader.advance(channel(0))
    assert algorithm(ObjectStore(s3.config(root="aurora/default/chat-01234567")), "channel/00000001.json") == "AES256"


async def test_the_operator_takes_the_encryption_from_the_spec(s3: S3) -> None:
    policy = StorePolicy()
    access = StoreAccess(SecretReader(cast(Any, FakeApi()), OWNER.namespace), policy)
    place = {"bucket": "bucket", "endpoint": s3.endpoint, "credentials": KEYS}
    found = await access.config(OWNER, spec(store=place | {"encryption": SSE_KMS}))
    assert isinstance(found, StoreConfig)
    assert found.encryption == Encryption.model_validate(SSE_KMS)


def test_a_pod_takes_the_encryption_from_its_settings() -> None:
    settings = StoreSettings(bucket="bucket", root="root", encryption=Encryption.model_validate(SSE_KMS))
    read = StoreConfig.of(StoreSettings.from_json(settings.to_json()))
    assert read == StoreConfig("bucket", "root", encryption=Encryption.model_validate(SSE_KMS))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("encryption", "expected"),
    [(SSE_S3, ("AES256", None)), (SSE_KMS, ("aws:kms", "alias/aurora")), ({"type": "SSE-KMS"}, ("aws:kms", None))],
    ids=["SSE-S3", "SSE-KMS", "SSE-KMS with the default key"],
)
def test_the_request_that_makes_an_object_carries_the_headers_and_no_other_request_does(
    large: Path, write: str, encryption: dict[str, str], expected: tuple[str, str | None]
) -> None:
    seen: list[tuple[str, tuple[str | None, ...]]] = []

    def record(request: Request) -> None:
        kind = f"{request.command} {'part' if 'partNumber' in request.path else request.path.partition('?')[2]}"
        seen.append((kind.strip(), tuple(request.headers.get(name) for name in HEADERS)))
        body = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        request.reply(200, body if request.command == "POST" else b"", ETag='"1"')

    with faulty_store(record) as fake:
        config = StoreConfig("bucket", "root", fake.endpoint, "us-east-1", "access", "secret")
        objects = ObjectStore(encrypted(config, encryption))
        WRITES[write](objects, large)
        objects.get(write)
        objects.delete(write)
    making = "POST uploads" if write == "upload" else "PUT"
    assert [headers for kind, headers in seen if kind == making] == [expected]
    assert {headers for kind, headers in seen if kind != making} == {(None, None)}
