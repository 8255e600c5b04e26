"""An upload that is tried again after a lost answer replaces nothing, and never leaves a manifest without its data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import ObjectExists, StoreError
from tests.assets.faulty_store import FaultyStore, Request, faulty_store

DATA, REWRITTEN = b"traces with a tag", b"traces without it"
MANIFEST_KEY = "traces/00000001/2026-01-01/00/pod-0-0b-00000000.json"
DATA_KEY = MANIFEST_KEY.replace(".json", ".safetensors")


def error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()


@dataclass
class KeptObjects:
    """Answers of a store that keeps objects and honours ``If-None-Match: *``.

    The answers to the next ``losses`` writes of keys that end with ``lost`` never arrive. Writes of keys that end with
    ``conflict`` are refused, as S3 does while another conditional write of the key is under way.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    lost: str = ""
    losses: int = 0
    conflict: str | None = None
    before_write: Callable[[str], None] = lambda key: None
    """Called with the key of each write that the store is about to carry out."""

    def __call__(self, request: Request) -> None:
        key = request.path.partition("?")[0].removeprefix("/bucket/root/")
        if request.command == "GET":
            known = key in self.objects
            request.reply(200 if known else 404, self.objects.get(key, error("NoSuchKey")))
        elif request.command == "DELETE":
            self.objects.pop(key, None)
            request.reply(204)
        elif self.conflict is not None and key.endswith(self.conflict):
            request.reply(409, error("ConditionalRequestConflict"))
        else:
            self.before_write(key)
            refused = key in self.objects and request.headers.get("If-None-Match") == "*"
            if not refused:
                self.objects[key] = request.body
            if self.losses and key.endswith(self.lost):
                self.losses, request.close_connection = self.losses - 1, True
            elif refused:
                request.reply(412, error("PreconditionFailed"))
            else:
                request.reply(200, ETag='"1"')


@pytest.fixture(name="kept")
def _kept() -> KeptObjects:
    return KeptObjects()


@pytest.fixture(name="store")
def _store(kept: KeptObjects) -> Iterator[FaultyStore]:
    with faulty_store(kept) as fake:
        yield fake


@pytest.fixture(name="shard")
def _shard(tmp_path: Path) -> tuple[ShardManifest, Path]:
    file = tmp_path / "spooled"
    file.write_bytes(DATA)
    return manifest_of(DATA), file


def manifest_of(data: bytes) -> ShardManifest:
    return ShardManifest(
        lineage=1, pod="pod-0", boot="0b", seq=0,
        file=FileRef(name=DATA_KEY.rsplit("/", 1)[1], sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
        requests=1, tokens=1, answer_tokens=1, rounds=1, proposed=1, accepted=0, dropped_records=0,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


RETRIES = 1


def registry(store: FaultyStore) -> PodRegistry:
    config = StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret")
    return PodRegistry(ObjectStore(config, attempts=1 + RETRIES))


def erase(kept: KeptObjects) -> None:
    """Rewrite the shard, as an erasure does."""
    kept.objects |= {DATA_KEY: REWRITTEN, MANIFEST_KEY: manifest_of(REWRITTEN).to_json()}


def test_erased_bytes_do_not_come_back_when_the_manifests_answer_was_lost(
    store: FaultyStore, kept: KeptObjects, shard: tuple[ShardManifest, Path]
) -> None:
    kept.lost, kept.losses = ".json", 1 + RETRIES
    with pytest.raises(StoreError):
        registry(store).put_shard(*shard)
    assert registry(store).shard(MANIFEST_KEY)[1] == DATA
    erase(kept)
    assert registry(store).put_shard(*shard) == MANIFEST_KEY
    assert registry(store).shard(MANIFEST_KEY)[1] == REWRITTEN


def test_a_shard_becomes_whole_when_the_datas_answer_was_lost(
    store: FaultyStore, kept: KeptObjects, shard: tuple[ShardManifest, Path]
) -> None:
    kept.lost, kept.losses = ".safetensors", 1 + RETRIES
    with pytest.raises(StoreError):
        registry(store).put_shard(*shard)
    assert list(kept.objects) == [DATA_KEY]
    registry(store).put_shard(*shard)
    assert registry(store).shard(MANIFEST_KEY)[1] == DATA


@pytest.mark.parametrize("lost", [".safetensors", ".json"])
def test_a_retry_within_one_call_finds_its_own_object(
    store: FaultyStore, kept: KeptObjects, shard: tuple[ShardManifest, Path], lost: str
) -> None:
    kept.lost, kept.losses = lost, 1
    registry(store).put_shard(*shard)
    assert registry(store).shard(MANIFEST_KEY)[1] == DATA


def test_while_another_write_of_the_data_is_under_way_no_manifest_is_written(
    store: FaultyStore, kept: KeptObjects, shard: tuple[ShardManifest, Path]
) -> None:
    """The other write may fail, and then the manifest would name missing data."""
    kept.conflict = ".safetensors"
    with pytest.raises(StoreError, match="under way; try again") as refused:
        registry(store).put_shard(*shard)
    assert not isinstance(refused.value, ObjectExists)
    assert kept.objects == {}
    kept.conflict = None
    registry(store).put_shard(*shard)
    assert registry(store).shard(MANIFEST_KEY)[1] == DATA


def test_data_that_the_trainer_deletes_while_an_upload_is_tried_again_are_written_again(
    store: FaultyStore, kept: KeptObjects, shard: tuple[ShardManifest, Path]
) -> None:
    kept.objects[DATA_KEY] = DATA

    def delete_abandoned(key: str) -> None:
        if key == MANIFEST_KEY:
            kept.objects.pop(DATA_KEY, None)

    kept.before_write = delete_abandoned
    registry(store).put_shard(*shard)
    assert registry(store).shard(MANIFEST_KEY)[1] == DATA


def test_a_former_manifest_that_returns_during_an_erasure_is_replaced(
    store: FaultyStore, kept: KeptObjects, shard: tuple[ShardManifest, Path]
) -> None:
    registry(store).put_shard(*shard)
    returns = [MANIFEST_KEY]

    def upload_again(key: str) -> None:
        if key == DATA_KEY and returns:
            kept.objects[returns.pop()] = manifest_of(DATA).to_json()

    kept.before_write = upload_again
    registry(store).replace_shard(MANIFEST_KEY, manifest_of(REWRITTEN), REWRITTEN)
    assert registry(store).shard(MANIFEST_KEY)[1] == REWRITTEN
