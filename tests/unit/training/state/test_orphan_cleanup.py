"""Orphans are deleted after a grace period, and a store that refuses deletions is detected at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store import Keys
from aurora_store.errors import StoreError
from tests.assets.trainer_output import publish_draft
from tests.unit.training import tiny


def test_cleanup_deletes_only_objects_that_no_manifest_names(model: TargetModel) -> None:
    registry, objects = tiny.memory_registry()
    tiny.open_lineage(registry, model, tiny.ticking_clock())
    complete = set(objects.data)
    objects.put("checkpoints/00000007-abc/model.safetensors", b"half")
    objects.put("trainer/state/00000003/state.safetensors", b"half")
    objects.put("trainer/state/00000002/state.safetensors", b"whole")
    objects.put(Keys.trainer_state(2), b"{}")
    assert OrphanCleanup(registry, grace_seconds=3600).delete_due() == 0
    cleanup = OrphanCleanup(registry, grace_seconds=0)
    objects.put("checkpoints/00000008-def/model.safetensors", b"being uploaded since the first listing")
    assert cleanup.delete_due() == 2
    kept = {"checkpoints/00000008-def/model.safetensors", "trainer/state/00000002/state.safetensors"}
    assert set(objects.data) == complete | kept | {Keys.trainer_state(2)}


def test_a_whole_draft_without_a_registration_stays(tmp_path: Path) -> None:
    """The next draft takes its number, and both go when that version expires."""
    registry, objects = tiny.memory_registry()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"{}")
    publish_draft(registry, tmp_path, 3)
    objects.delete(Keys.registration(3))
    assert OrphanCleanup(registry, grace_seconds=0).delete_due() == 0
    assert len(objects.data) == 3


def test_an_orphan_that_cannot_be_deleted_does_not_block_the_others(
    model: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, objects = tiny.memory_registry()
    for name in "ab":
        objects.put(f"checkpoints/00000007-{name}/model.safetensors", b"half")
    cleanup, real = OrphanCleanup(registry, grace_seconds=0), objects.delete

    def delete(key: str) -> None:
        if "-a/" in key:
            raise StoreError("AccessDenied")
        real(key)

    monkeypatch.setattr(objects, "delete", delete)
    assert cleanup.delete_due() == 1
    assert list(objects.data) == ["checkpoints/00000007-a/model.safetensors"]


def test_a_store_that_refuses_deletions_is_detected_at_the_start_and_left_with_one_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = tiny.MemoryObjects()
    real = objects.delete

    def refuse(key: str) -> None:
        raise StoreError("AccessDenied")

    monkeypatch.setattr(objects, "delete", refuse)
    for _ in range(3):
        with pytest.raises(StoreError, match="DeleteObject"):
            objects.probe()
    assert len(objects.data) == 1
    monkeypatch.setattr(objects, "delete", real)
    objects.probe()
    assert objects.data == {}
