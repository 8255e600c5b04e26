"""A pod starts with the active draft, and with the draft on its disk when the store is out of reach."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_runtime.serving.agent.first_staging import stage_active_draft
from aurora_runtime.serving.pod_files import PodFolder
from aurora_store import Registry
from aurora_store.errors import StoreError
from tests.unit.fakes import FolderObjects, lineage
from tests.unit.serving.agent.test_draft_cache import add_draft


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path / "store")


@pytest.fixture
def registry(objects: FolderObjects) -> Registry:
    objects.path.mkdir()
    return Registry(objects)


def channel(epoch: int, active: int) -> Channel:
    return Channel(epoch=epoch, lineage=1, active=active, reason=ChannelReason.PROMOTED, created=datetime.now(UTC))


def test_a_pod_starts_with_the_active_draft(registry: Registry, tmp_path: Path) -> None:
    folder = PodFolder(tmp_path / "fresh")
    with pytest.raises(StoreError, match="the trainer to create the lineage"):
        stage_active_draft(folder, registry, timeout_seconds=0, poll_seconds=0)
    registry.create_lineage(lineage())
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
    registry: Registry, objects: FolderObjects, tmp_path: Path
) -> None:
    folder = PodFolder(tmp_path / "fresh")
    objects.down = True
    with pytest.raises(StoreError, match="the store is down"):
        stage_active_draft(folder, registry, timeout_seconds=0, poll_seconds=0)
    objects.down = False
    registry.create_lineage(lineage())
    add_draft(registry, tmp_path, 0)
    stage_active_draft(folder, registry, timeout_seconds=0)
    objects.down = True
    assert stage_active_draft(folder, registry, timeout_seconds=0).version == 0
