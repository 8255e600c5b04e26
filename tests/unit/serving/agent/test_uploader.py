"""Shards leave the spool only for the store, and a pod that stops counts the shards that it loses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent import uploader as uploader_module
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import write_atomically
from tests.cluster.command import wait_until
from tests.unit.fakes import FolderObjects


def shard(spool: Path, seq: int, data: bytes = b"data") -> Path:
    spool.mkdir(parents=True, exist_ok=True)
    stem = spool / f"pod-0-0b-{seq:08d}"
    manifest = ShardManifest(
        lineage=1, pod="pod-0", boot="0b", seq=seq,
        file=FileRef(name=f"{stem.name}.safetensors", sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
        requests=1, tokens=1, answer_tokens=1, rounds=1, proposed=1, accepted=0, dropped_records=0,
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    stem.with_suffix(".safetensors").write_bytes(data)
    write_atomically(stem.with_suffix(".json"), manifest.to_json())  # as the writer does: the uploader may be looking
    return stem.with_suffix(".safetensors")


@pytest.fixture
def uploads(objects: FolderObjects, registry: PodRegistry, tmp_path: Path) -> tuple[Uploader, FolderObjects, Path]:
    return Uploader(tmp_path / "spool", registry), objects, tmp_path / "spool"


def test_shards_leave_the_spool_once_the_store_has_them(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    uploader.upload_spool()
    for seq in range(3):
        shard(spool, seq)
    uploader.upload_spool()
    registry = PodRegistry(objects)
    keys = list(registry.list_shards(1).data_bytes)
    assert [registry.shard(key)[0].seq for key in keys] == [0, 1, 2]
    assert list(spool.iterdir()) == []
    assert uploader.counters.uploaded == 3


def test_a_shard_whose_manifest_was_not_stored_is_uploaded_again(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    shard(spool, 0)
    real = objects.create

    def lost(key: str, data: bytes) -> None:
        objects.create = real  # type: ignore[method-assign]
        objects.writes_to_refuse = 1
        real(key, data)

    objects.create = lost  # type: ignore[method-assign]
    with pytest.raises(Exception, match="refuses"):
        uploader.upload_spool()
    assert list(PodRegistry(objects).list_shards(1).data_bytes) == [], "no manifest, no shard"
    uploader.upload_spool()
    assert len(PodRegistry(objects).list_shards(1).data_bytes) == 1
    assert uploader.counters.uploaded == 1


def test_a_shard_that_differs_from_its_manifest_is_dropped(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    shard(spool, 0).write_bytes(b"daTa")
    shard(spool, 1).with_suffix(".json").write_bytes(b"{}")
    shard(spool, 2).unlink()
    shard(spool, 3)
    uploader.upload_spool()
    assert [PodRegistry(objects).shard(key)[0].seq for key in PodRegistry(objects).list_shards(1).data_bytes] == [3]
    assert (uploader.counters.uploaded, uploader.counters.dropped) == (1, 2), "the writer has counted the third"
    assert uploader.counters.losses == {"damaged": 2}
    assert list(spool.iterdir()) == []


async def test_an_error_is_reported_once_uploads_have_failed_for_long_and_until_one_succeeds(
    uploads: tuple[Uploader, FolderObjects, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader, objects, spool = uploads
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        objects.down = len(pauses) < 7
        if pauses[7:]:
            raise asyncio.CancelledError
        assert (uploader.error == "") == (len(pauses) < 7)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr("random.uniform", lambda *_: 1.0)
    shard(spool, 0)
    objects.down = True
    with pytest.raises(asyncio.CancelledError):
        await uploader.run()
    assert pauses[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert (uploader.counters.uploaded, uploader.error) == (1, "")


@pytest_asyncio.fixture
async def uploading(
    uploads: tuple[Uploader, FolderObjects, Path], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Uploader, FolderObjects, Path]]:
    """The uploader at work, with short waits."""
    monkeypatch.setattr(uploader_module, "POLL_SECONDS", 0.02)
    task = asyncio.create_task(uploads[0].run())
    yield uploads
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_pod_that_stops_uploads_the_last_shards_of_its_engine(
    uploading: tuple[Uploader, FolderObjects, Path],
) -> None:
    uploader, objects, spool = uploading
    engine_runs = True
    shard(spool, 0)
    finishing = asyncio.create_task(uploader.finish(600, lambda: engine_runs))
    await asyncio.sleep(0.1)
    assert not finishing.done(), "the engine still answers, and traces"
    shard(spool, 1)
    engine_runs = False
    await finishing
    assert len(PodRegistry(objects).list_shards(1).data_bytes) == 2
    # The upload's thread deletes the data right after the manifest.
    await asyncio.to_thread(wait_until, "an empty spool", lambda: not list(spool.iterdir()), 10)
    assert uploader.counters.dropped == 0


async def test_a_pod_that_stops_waits_for_the_store_no_longer_than_allowed_and_counts_lost_shards(
    uploading: tuple[Uploader, FolderObjects, Path], caplog: pytest.LogCaptureFixture
) -> None:
    uploader, objects, spool = uploading
    objects.down = True
    for seq in range(3):
        shard(spool, seq)
    await uploader.finish(0.2, lambda: False)
    assert uploader.counters.dropped == 3
    assert uploader.counters.losses == {"shutdown": 3}
    assert "3 shards (12 bytes) are lost with the pod" in caplog.text
    objects.down = False
    uploader.upload_spool()
    assert uploader.counters.uploaded == 0, "a shard that was counted as lost is not uploaded later"


def test_shards_wait_in_the_spool_until_they_are_known_to_be_of_the_lineage(
    registry: PodRegistry, tmp_path: Path
) -> None:
    spool, serves_draft = tmp_path / "spool", False
    uploader = Uploader(spool, registry, lambda: serves_draft)
    data = shard(spool, 0)
    uploader.upload_spool()
    assert (data.exists(), uploader.counters.uploaded) == (True, 0)
    serves_draft = True
    uploader.upload_spool()
    assert (data.exists(), uploader.counters.uploaded) == (False, 1)
