"""A pod starts with the active draft, else with the draft on its disk, else without one."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, CheckpointManifest
from aurora_runtime.engine.speculation_settings import PLACEHOLDER_VERSION
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.main import stage_active_draft
from aurora_runtime.serving.pod_files import MANIFEST, PodFolder
from aurora_store import Keys, ObjectStore, StoreConfig
from tests.assets.faulty_store import faulty_store, hang
from tests.assets.signing import ROOT_OWNER
from tests.unit.fakes import FolderObjects, draft_tensors, lineage, publish_bytes, safetensors
from tests.unit.serving.agent.test_draft_cache import add_draft

MARGIN_SECONDS = 3.0
"""botocore waits up to one second before the retry that the deadline forbids."""


def channel(epoch: int, active: int) -> Channel:
    return Channel(
        owner=ROOT_OWNER,
        epoch=epoch,
        lineage=1,
        active=active,
        reason=ChannelReason.PROMOTED,
        created=datetime.now(UTC),
    )


def stage(
    folder: PodFolder, registry: PodRegistry, *, find_seconds: float = 0, fetch_seconds: float = 60
) -> int | None:
    """The version that the pod starts with. None: it starts without a draft."""
    draft = stage_active_draft(
        folder, registry, find_seconds=find_seconds, fetch_seconds=fetch_seconds, poll_seconds=0.01
    )
    return None if draft is None else draft.version


def test_a_pod_starts_with_the_active_draft_and_without_one_before_there_is_one(
    registry: PodRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = PodFolder(tmp_path / "fresh")
    assert stage(folder, registry) is None
    assert "create the lineage" in caplog.text
    registry.create_lineage(lineage())
    assert stage(folder, registry) is None
    assert "the channel's first record" in caplog.text
    registry.advance_channel(channel(1, 0))
    assert stage(folder, registry) is None
    assert "register draft version 0" in caplog.text
    add_draft(registry, tmp_path, 0)
    assert stage(folder, registry) == 0
    add_draft(registry, tmp_path, 5)
    registry.advance_channel(channel(2, 5))
    assert stage(folder, registry) == 5
    assert folder.current.resolve().name.startswith("00000005-")
    assert folder.lineage.exists()


def test_a_draft_that_comes_while_the_pod_looks_for_one_is_staged(registry: PodRegistry, tmp_path: Path) -> None:
    def come() -> None:
        registry.create_lineage(lineage())
        add_draft(registry, tmp_path, 0)
        registry.advance_channel(channel(1, 0))

    timer = threading.Timer(0.2, come)
    timer.start()
    assert stage(PodFolder(tmp_path / "fresh"), registry, find_seconds=30) == 0
    timer.join()


def test_without_the_store_a_pod_starts_with_the_draft_on_its_disk_or_without_one(
    registry: PodRegistry, objects: FolderObjects, started: PodFolder, tmp_path: Path
) -> None:
    objects.down = True
    assert stage(started, registry) == 0
    assert stage(PodFolder(tmp_path / "fresh"), registry) is None


@pytest.fixture
def started(registry: PodRegistry, tmp_path: Path) -> PodFolder:
    """The folder of a pod that started once with version 0."""
    registry.create_lineage(lineage())
    add_draft(registry, tmp_path, 0)
    registry.advance_channel(channel(1, 0))
    folder = PodFolder(tmp_path / "started")
    stage(folder, registry)
    return folder


@pytest.mark.parametrize(
    "key", [Keys.channel(1), Keys.lineage(1), Keys.registration(0), Keys.checkpoint(1, "0" * 64) + "manifest.json"]
)
@pytest.mark.parametrize("data", [b"{}", b"[" * 100_000, b"\xff"], ids=["empty", "brackets", "no text"])
def test_a_pod_that_has_a_draft_starts_despite_an_invalid_record(
    registry: PodRegistry, started: PodFolder, key: str, data: bytes
) -> None:
    registry.objects.put(key, data)
    assert stage(started, registry) == 0


def test_a_draft_that_no_engine_may_load_is_looked_at_once_and_left(
    registry: PodRegistry, started: PodFolder, tmp_path: Path
) -> None:
    publish_bytes(registry, tmp_path / "sources", 1, safetensors(draft_tensors(float("nan"))))
    registry.advance_channel(channel(2, 1))
    began = time.monotonic()
    assert stage(started, registry, find_seconds=3600) == 0
    assert stage(PodFolder(tmp_path / "fresh"), registry, find_seconds=3600) is None
    assert time.monotonic() - began < 60


def test_a_placeholder_on_the_disk_is_no_draft(registry: PodRegistry, started: PodFolder) -> None:
    draft = started.current.resolve()
    manifest = CheckpointManifest.from_json((draft / MANIFEST).read_bytes())
    (draft / MANIFEST).write_bytes(manifest.model_copy(update={"version": PLACEHOLDER_VERSION}).to_json())
    registry.objects.delete(Keys.channel(1))
    assert stage(started, registry) is None


def test_a_store_that_hangs_does_not_defeat_the_deadline(started: PodFolder, tmp_path: Path) -> None:
    with faulty_store(hang) as store:
        config = StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret")
        slow = PodRegistry(ObjectStore(config, attempts=5, timeout_seconds=1))
        began = time.monotonic()
        assert stage(started, slow, find_seconds=2) == 0
        assert stage(PodFolder(tmp_path / "fresh"), slow, find_seconds=2) is None
        assert time.monotonic() - began < 2 * (2 + MARGIN_SECONDS)
