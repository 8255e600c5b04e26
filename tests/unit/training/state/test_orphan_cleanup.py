"""Orphans are deleted after a grace period, and a store that refuses deletions is detected at the start."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.state import orphan_cleanup
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store import Keys
from aurora_store.errors import StoreError
from tests.assets.signing import ROOT_OWNER
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


def put_draft(registry: PodRegistry, folder: Path, version: int, seed: int, *, registered: bool = True) -> str:
    """Upload a whole draft. Returns its folder's key."""
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes([seed]))
    key = publish_draft(registry, folder, version).checkpoint
    if not registered:
        registry.objects.delete(Keys.registration(version))
    return key


def test_whole_drafts_that_no_registration_names_are_deleted(tmp_path: Path) -> None:
    """A trainer ended between the upload and the registration, or another one took the number."""
    registry, objects = tiny.memory_registry()
    ended = put_draft(registry, tmp_path / "a", 3, 1, registered=False)
    lost = put_draft(registry, tmp_path / "b", 2, 2, registered=False)
    for version in (0, 1, 2):
        put_draft(registry, tmp_path / f"{version}", version, 3 + version)
    objects.put("checkpoints/notes/manifest.json", b"foreign")
    cleanup, before = OrphanCleanup(registry, grace_seconds=0), set(objects.data)
    assert cleanup.delete_due() == 6
    assert set(objects.data) == {key for key in before if not key.startswith((ended, lost))}


def test_a_draft_that_may_be_registered_is_kept(tmp_path: Path) -> None:
    registry, objects = tiny.memory_registry()
    for seed in (1, 2):
        put_draft(registry, tmp_path / f"{seed}", 1, seed, registered=seed == 2)
    put_draft(registry, tmp_path / "late", 3, 3)
    late = registry.registration(3)
    objects.delete(Keys.registration(3))
    objects.put(Keys.registration(1), b"{")
    cleanup = OrphanCleanup(registry, grace_seconds=0)
    registry.register(late)  # since the first listing
    before = dict(objects.data)
    assert cleanup.delete_due() == 0
    assert objects.data == before


def test_a_draft_whose_registration_is_lost_is_kept_below_the_newest_one(tmp_path: Path) -> None:
    registry, objects = tiny.memory_registry()
    for version in (0, 1, 2):
        put_draft(registry, tmp_path / f"{version}", version, version, registered=version == 2)
    before = dict(objects.data)
    assert OrphanCleanup(registry, grace_seconds=0).delete_due() == 0
    assert objects.data == before


@pytest.mark.parametrize("with_digests", [True, False])
def test_drafts_that_the_channel_names_are_kept_without_a_registration(with_digests: bool, tmp_path: Path) -> None:
    registry, objects = tiny.memory_registry()
    keys = [put_draft(registry, tmp_path / f"{version}", version, version, registered=False) for version in range(4)]
    weights = [objects.data[f"{key}model.safetensors"] for key in keys]
    active, previous = (hashlib.sha256(weights[version]).hexdigest() if with_digests else None for version in (2, 1))
    channel = Channel(
        owner=ROOT_OWNER,
        epoch=1,
        lineage=1,
        active=2,
        previous=1,
        active_digest=active,
        previous_digest=previous,
        reason=ChannelReason.PROMOTED,
        created=utc_now(),
    )
    objects.put(Keys.channel(1), channel.to_json())
    assert OrphanCleanup(registry, grace_seconds=0).delete_due() == 6
    assert {key.rsplit("/", 1)[0] + "/" for key in objects.data if key.startswith(Keys.CHECKPOINTS)} == set(keys[1:3])


def test_no_whole_draft_is_deleted_while_the_channel_is_unreadable(tmp_path: Path) -> None:
    registry, objects = tiny.memory_registry()
    put_draft(registry, tmp_path / "a", 3, 1, registered=False)
    objects.put(Keys.channel(1), b"{")
    assert OrphanCleanup(registry, grace_seconds=0).delete_due() == 0


def test_the_manifest_of_a_draft_is_deleted_first(tmp_path: Path) -> None:
    registry, objects = tiny.memory_registry()
    folder = put_draft(registry, tmp_path / "a", 3, 1, registered=False)
    cleanup = OrphanCleanup(registry, grace_seconds=0)
    cleanup.delete_due(stopping=lambda: f"{folder}manifest.json" not in objects.data)
    assert set(objects.data) == {f"{folder}config.json", f"{folder}model.safetensors"}


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


def test_a_listing_that_fails_does_not_cancel_the_cleanup(model: TargetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, objects = tiny.memory_registry()
    objects.put("checkpoints/00000007-a/model.safetensors", b"half")
    cleanup = OrphanCleanup(registry, grace_seconds=0)

    def fail(_: object) -> set[str]:
        raise StoreError("the store did not answer")

    with monkeypatch.context() as patch:
        patch.setattr(orphan_cleanup, "orphans", fail)
        with pytest.raises(StoreError):
            cleanup.delete_due()
    assert cleanup.delete_due() == 1


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
