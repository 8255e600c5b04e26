"""Keys that are rotated under writes stop no writer, and need no restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aurora_protocol.pod_settings import STORE_KEYS_VARIABLE
from aurora_store import ObjectStore, StoreConfig
from aurora_store import objects as objects_module
from aurora_store.errors import StoreError
from aurora_store.s3_client import S3Clients
from tests.assets.s3 import S3, seaweedfs
from tests.unit.store.test_mounted_keys import mount

FORMER, NEW, GONE = "former", "new", "gone"
ALL = json.dumps(
    {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}]}
)


def _mount(folder: Path, config: StoreConfig) -> None:
    mount(folder, str(config.access_key), AWS_ACCESS_KEY_ID=str(config.access_key),
          AWS_SECRET_ACCESS_KEY=str(config.secret_key))  # fmt: skip


@pytest.fixture
def writer(s3_with_two_keys: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A store as a pod opens it, with the former keys mounted."""
    ObjectStore(s3_with_two_keys.config()).ensure_bucket()
    _mount(tmp_path, s3_with_two_keys.config(identity=FORMER))
    monkeypatch.setenv(STORE_KEYS_VARIABLE, str(tmp_path))
    monkeypatch.setattr(objects_module, "SHARED_CLIENTS", S3Clients())
    return ObjectStore(StoreConfig("aurora-test", "root", s3_with_two_keys.endpoint), attempts=1)


@pytest.fixture(scope="module")
def s3_with_two_keys() -> Iterator[S3]:
    with seaweedfs(policies={FORMER: ALL, NEW: ALL}) as server:
        yield server


def test_a_writer_goes_on_with_the_new_keys(writer: ObjectStore, s3_with_two_keys: S3, tmp_path: Path) -> None:
    signed = []
    writer._s3.meta.events.register(
        "before-send.s3", lambda request, **_: signed.append(request.headers["Authorization"].decode())
    )
    for number in range(100):
        if number == 50:
            _mount(tmp_path, s3_with_two_keys.config(identity=NEW))
        writer.create(f"records/{number:08d}", b"data")
    assert len(list(writer.list("records/"))) == 100
    access = [s3_with_two_keys.config(identity=name).access_key for name in (FORMER, NEW)]
    assert [next(key for key in access if f"Credential={key}/" in line) for line in signed[:100]] == (
        [access[0]] * 50 + [access[1]] * 50
    )


def test_keys_that_the_store_does_not_know_are_replaced_under_way(
    writer: ObjectStore, s3_with_two_keys: S3, tmp_path: Path
) -> None:
    """The former keys were deleted before the Secret has the new ones: writes fail, and succeed again by themselves."""
    _mount(tmp_path, s3_with_two_keys.config(identity=GONE))
    with pytest.raises(StoreError, match="InvalidAccessKeyId"):
        writer.put("object", b"1")
    _mount(tmp_path, s3_with_two_keys.config(identity=NEW))
    writer.put("object", b"2")
    assert writer.get("object") == b"2"
