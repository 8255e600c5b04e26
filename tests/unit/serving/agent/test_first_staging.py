"""A pod starts with the active draft, and with the draft on its disk when the store is out of reach."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent import first_staging
from aurora_runtime.serving.agent.first_staging import stage_active_draft
from aurora_runtime.serving.pod_files import PodFolder
from aurora_store import Keys, ObjectStore, StoreConfig
from aurora_store.errors import StoreError
from tests.assets.faulty_store import faulty_store, hang
from tests.assets.signing import KEYS, ROOT_OWNER
from tests.unit.fakes import FolderObjects, draft_tensors, lineage, publish_bytes, safetensors
from tests.unit.serving.agent.test_draft_cache import add_draft

MARGIN_SECONDS = 3.0
"""botocore waits up to one second before the retry that the deadline forbids."""


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path / "store")


@pytest.fixture
def registry(objects: FolderObjects) -> PodRegistry:
    objects.path.mkdir()
    return PodRegistry(objects, KEYS)


def channel(epoch: int, active: int) -> Channel:
    return Channel(
        owner=ROOT_OWNER,
        epoch=epoch,
        lineage=1,
        active=active,
        reason=ChannelReason.PROMOTED,
        created=datetime.now(UTC),
    )


def test_a_pod_starts_with_the_active_draft(registry: PodRegistry, tmp_path: Path) -> None:
    folder = PodFolder(tmp_path / "fresh")
    with pytest.raises(StoreError, match="lineage"):
        stage_active_draft(folder, registry, timeout_seconds=0, poll_seconds=0)
    registry.create_lineage(lineage())
    with pytest.raises(StoreError, match="channel"):
        stage_active_draft(folder, registry, timeout_seconds=0, poll_seconds=0)
    registry.advance_channel(channel(1, 0))
    with pytest.raises(StoreError, match="register draft version 0"):
        stage_active_draft(folder, registry, timeout_seconds=0, poll_seconds=0)
    add_draft(registry, tmp_path, 0)
    assert stage_active_draft(folder, registry, timeout_seconds=0).version == 0
    add_draft(registry, tmp_path, 5)
    registry.advance_channel(channel(2, 5))
    for leftover in (folder.withdrawal, folder.mode):
        leftover.write_text("")  # empty, as after a power failure of the node during a measurement
    assert stage_active_draft(folder, registry, timeout_seconds=0).version == 5
    assert not folder.withdrawal.exists()
    assert not folder.mode.exists()
    assert folder.current.resolve().name.startswith("00000005-")
    assert folder.lineage.exists()


def test_a_pod_that_has_a_draft_starts_without_the_store(
    registry: PodRegistry, objects: FolderObjects, tmp_path: Path
) -> None:
    folder = PodFolder(tmp_path / "fresh")
    objects.down = True
    with pytest.raises(StoreError, match="the store is down"):
        stage_active_draft(folder, registry, timeout_seconds=0, poll_seconds=0)
    objects.down = False
    registry.create_lineage(lineage())
    add_draft(registry, tmp_path, 0)
    registry.advance_channel(channel(1, 0))
    stage_active_draft(folder, registry, timeout_seconds=0)
    objects.down = True
    assert stage_active_draft(folder, registry, timeout_seconds=0).version == 0


@pytest.fixture
def started(registry: PodRegistry, tmp_path: Path) -> PodFolder:
    """The folder of a pod that started once with version 0."""
    registry.create_lineage(lineage())
    add_draft(registry, tmp_path, 0)
    registry.advance_channel(channel(1, 0))
    folder = PodFolder(tmp_path / "started")
    stage_active_draft(folder, registry, timeout_seconds=0)
    return folder


@pytest.mark.parametrize(
    "key", [Keys.channel(1), Keys.lineage(1), Keys.registration(0), Keys.checkpoint(1, "0" * 64) + "manifest.json"]
)
@pytest.mark.parametrize("data", [b"{}", b"[" * 100_000, b"\xff"], ids=["empty", "brackets", "no text"])
def test_a_pod_that_has_a_draft_starts_despite_an_invalid_record(
    registry: PodRegistry, started: PodFolder, key: str, data: bytes
) -> None:
    registry.objects.put(key, data)
    assert stage_active_draft(started, registry, timeout_seconds=0).version == 0


def test_a_lineage_that_is_damaged_on_the_disk_is_written_again(registry: PodRegistry, started: PodFolder) -> None:
    started.lineage.write_text("")
    assert stage_active_draft(started, registry, timeout_seconds=0).version == 0
    assert started.lineage.read_bytes() == lineage_bytes(registry)


def lineage_bytes(registry: PodRegistry) -> bytes:
    stored = registry.lineage()
    assert stored is not None
    return stored.to_json()


def test_a_new_pod_says_which_record_is_invalid(registry: PodRegistry, started: PodFolder, tmp_path: Path) -> None:
    registry.objects.put(Keys.channel(1), b"{}")
    with pytest.raises(StoreError, match=r"gave up waiting for the store: channel/00000001\.json"):
        stage_active_draft(PodFolder(tmp_path / "fresh"), registry, timeout_seconds=0, poll_seconds=0)


def test_a_pod_that_has_a_draft_does_not_need_the_active_one_to_be_loadable(
    registry: PodRegistry, started: PodFolder, tmp_path: Path
) -> None:
    publish_bytes(registry, tmp_path / "sources", 1, safetensors(draft_tensors(float("nan"))))
    registry.advance_channel(channel(2, 1))
    assert stage_active_draft(started, registry, timeout_seconds=0).version == 0
    with pytest.raises(DraftRefused):
        stage_active_draft(PodFolder(tmp_path / "fresh"), registry, timeout_seconds=0)


def test_a_store_that_hangs_does_not_defeat_the_deadline(started: PodFolder, tmp_path: Path) -> None:
    with faulty_store(hang) as store:
        config = StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret")
        slow = PodRegistry(ObjectStore(config, attempts=5, timeout_seconds=1))
        began = time.monotonic()
        assert stage_active_draft(started, slow, timeout_seconds=2).version == 0
        with pytest.raises(StoreError):
            stage_active_draft(PodFolder(tmp_path / "fresh"), slow, timeout_seconds=2, poll_seconds=0)
        assert time.monotonic() - began < 2 * (2 + MARGIN_SECONDS)


def test_a_pod_that_has_a_draft_waits_less_than_a_new_one(started: PodFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_staging, "STORE_SECONDS_WITH_DRAFT", 1.0)
    with faulty_store(hang) as store:
        config = StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret")
        began = time.monotonic()
        stage_active_draft(started, PodRegistry(ObjectStore(config, timeout_seconds=1)), timeout_seconds=3600)
        assert time.monotonic() - began < 1 + MARGIN_SECONDS
