"""What a bucket writer puts beside the records is left out, and never hides the good ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, CheckpointManifest
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import MAX_NUMBER
from aurora_protocol.training_records import ShardManifest, TrainerState
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys
from aurora_store.errors import StoreError
from aurora_store.keys import MAX_ATTEMPT_GAP, MAX_NUMBER_GAP, in_sequence
from tests.assets.signing import ROOT_OWNER
from tests.assets.trainer_output import put_trainer_state
from tests.unit.fakes import FolderObjects, draft_tensors, lineage, publish_bytes, safetensors
from tests.unit.training import tiny

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LAST = MAX_NUMBER


@pytest.fixture
def registry(tmp_path: Path) -> PodRegistry:
    """A lineage, versions 0 and 1, and a channel of one epoch."""
    objects = FolderObjects(tmp_path / "store")
    objects.path.mkdir()
    registry = PodRegistry(objects)
    registry.create_lineage(lineage())
    for version in (0, 1):
        publish_bytes(registry, tmp_path / "sources", version, safetensors(draft_tensors(version + 1.0)))
    registry.advance_channel(channel(1, active=0))
    return registry


def channel(epoch: int, active: int) -> Channel:
    return Channel(owner=ROOT_OWNER, epoch=epoch, lineage=1, active=active, reason=ChannelReason.PROMOTED, created=NOW)


def change(registry: PodRegistry, key: str, **fields: Any) -> None:
    """Overwrite fields of a record, as nobody but a bucket writer does."""
    registry.objects.put(key, json.dumps(json.loads(registry.objects.get(key)) | fields).encode())


@pytest.mark.parametrize("number", [LAST, LAST - MAX_NUMBER_GAP + 1, 2 + 2 * MAX_NUMBER_GAP])
def test_a_record_out_of_sequence_wins_nothing(registry: PodRegistry, number: int) -> None:
    registry.objects.put(Keys.channel(number), channel(number, active=1).to_json())
    copied = registry.registration(1).model_copy(update={"version": number})
    registry.objects.put(Keys.registration(number), copied.to_json())
    registry.objects.put(Keys.lineage(number), lineage(number).to_json())
    newest, found = registry.channel(), registry.lineage()
    assert newest is not None
    assert (newest.epoch, newest.active) == (1, 0)
    assert registry.last_version() == 1
    assert found is not None
    assert found.number == 1
    registry.advance_channel(channel(2, active=1))
    after = registry.channel()
    assert after is not None
    assert after.epoch == 2, "the operator's next record wins as before"


@pytest.mark.parametrize("name", ["zzz.json", "1.json", "00000001.json.json", "sub/00000009.json", "../00000009.json"])
@pytest.mark.parametrize("prefix", [Keys.REGISTRY, Keys.CHANNEL, Keys.LINEAGE, Keys.TRAINER_STATE])
def test_an_object_with_a_foreign_name_is_left_out(registry: PodRegistry, prefix: str, name: str) -> None:
    put_trainer_state(registry)
    registry.objects.put(prefix + name, b"{}")
    newest, found = registry.channel(), registry.lineage()
    assert newest is not None
    assert found is not None
    assert (registry.last_version(), newest.epoch, found.number) == (1, 1, 1)
    assert registry.trainer_state_epochs() == [1]


def test_a_sequence_ends_before_the_first_large_gap() -> None:
    assert in_sequence([3, 1, 2]) == [1, 2, 3]
    assert in_sequence([1, 2 + MAX_NUMBER_GAP]) == [1]
    assert in_sequence([1 + MAX_NUMBER_GAP]) == []
    assert in_sequence([LAST], known=LAST) == []
    assert in_sequence([]) == []
    assert in_sequence([1, 2 + MAX_NUMBER_GAP, LAST], max_gap=MAX_ATTEMPT_GAP) == [1, 2 + MAX_NUMBER_GAP]


def test_a_trainer_state_out_of_sequence_leaves_room_for_the_next_epoch(registry: PodRegistry) -> None:
    for _ in range(3):
        put_trainer_state(registry)
    registry.objects.put(Keys.trainer_state(LAST), b"{}")
    assert registry.last_trainer_state_epoch() == 3
    assert put_trainer_state(registry).epoch == 4


def test_data_of_old_trainer_states_are_deleted_again_when_it_failed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, objects = tiny.memory_registry()
    refused, delete = [True], objects.delete

    def refuse_once(key: str) -> None:
        if key.endswith(".safetensors") and refused and refused.pop():
            raise StoreError("SlowDown")
        delete(key)

    monkeypatch.setattr(objects, "delete", refuse_once)
    for epoch in (3, 4, 5):
        put_trainer_state(registry, epoch=epoch)
    assert any(key.startswith(Keys.trainer_state_folder(3)) for key in objects.data)
    objects.put("trainer/state/notes/x", b"foreign")
    put_trainer_state(registry)
    left = {key.split("/")[2].removesuffix(".json") for key in objects.data}
    assert left == {"00000005", "00000006", "notes"}


def test_a_record_under_the_key_of_another_is_refused(registry: PodRegistry) -> None:
    for key in (Keys.registration(1), Keys.channel(1), Keys.lineage(1)):
        field = {Keys.registration(1): "version", Keys.channel(1): "epoch"}.get(key, "number")
        change(registry, key, **{field: 7})
    for read in (lambda: registry.registration(1), registry.channel, registry.lineage):
        with pytest.raises(InvalidRecord, match="own numbers belong to"):
            read()


def test_a_version_cannot_name_the_files_of_another_folder(registry: PodRegistry) -> None:
    for folder in ("../other/checkpoints/", "checkpoints/00000000-000000000000/", ""):
        change(registry, Keys.registration(1), checkpoint=folder)
        with pytest.raises(InvalidRecord, match="not its own"):
            registry.checkpoint(registry.registration(1))


def manifest_of(registry: PodRegistry) -> tuple[str, CheckpointManifest]:
    registered = registry.registration(1)
    return f"{registered.checkpoint}manifest.json", registry.checkpoint(registered)


@pytest.mark.parametrize(
    "name", ["../../json.py", "/etc/passwd", "..", ".", "", ".hidden", "a/b", "a\\b", "a\n", "ä.json", "x" * 300]
)
def test_a_manifest_cannot_name_a_path(registry: PodRegistry, tmp_path: Path, name: str) -> None:
    key, manifest = manifest_of(registry)
    files = [file.model_dump() for file in manifest.files]
    for changed in ([files[0] | {"name": name}, files[1]], [*files, files[0] | {"name": name}]):
        change(registry, key, files=changed)
        with pytest.raises(InvalidRecord):
            registry.fetch_checkpoint(registry.registration(1), tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(("number", "size"), [(0, 1 << 40), (1, 1 << 40), (1, 1 << 80), (1, -1)])
def test_a_file_that_is_too_large_is_not_begun(registry: PodRegistry, tmp_path: Path, number: int, size: int) -> None:
    key, manifest = manifest_of(registry)
    files = [file.model_dump() for file in manifest.files]
    files[number]["size"] = size
    change(registry, key, files=files)
    with pytest.raises(InvalidRecord):
        registry.fetch_checkpoint(registry.registration(1), tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    "fields",
    [{"pod": "../../x"}, {"boot": "a/b"}, {"seq": 10**9}, {"lineage": 2}, {"tokens": 1 << 70}, {"seq": 1}],
    ids=str,
)
def test_a_shards_manifest_describes_the_shard_at_its_key(fields: dict[str, Any]) -> None:
    registry, _ = tiny.memory_registry()
    key = tiny.put_shard(registry, 0, [tiny.trace(0)])
    change(registry, key, **fields)
    with pytest.raises(InvalidRecord):
        registry.shard(key)


def test_a_shards_manifest_names_its_own_data_of_a_possible_size() -> None:
    registry, _ = tiny.memory_registry()
    key = tiny.put_shard(registry, 0, [tiny.trace(0)])
    own = ShardManifest.from_json(registry.objects.get(key)).file
    for changed in ({"name": "other.safetensors"}, {"size": 1 << 40}):
        change(registry, key, file=own.model_dump() | changed)
        with pytest.raises(InvalidRecord, match="names"):
            registry.shard(key)
    for foreign in ("traces/../registry/00000001.json", "registry/00000001.json", "traces/.x.json", "traces/x"):
        with pytest.raises(InvalidRecord, match="not the key"):
            registry.shard(foreign)
        with pytest.raises(InvalidRecord, match="not the key"):
            registry.delete_shard(foreign)


def test_foreign_objects_among_the_traces_are_neither_trained_nor_deleted() -> None:
    registry, objects = tiny.memory_registry()
    key = tiny.put_shard(registry, 0, [tiny.trace(0)])
    for name in ("traces/00000001/../x.json", "traces/00000001/.x.json", "traces/00000001/a b.safetensors"):
        objects.put(name, b"{}")
    listing = registry.list_shards(1)
    assert (list(listing.data_bytes), dict(listing.orphans)) == ([key], {})
    assert (list(registry.list_shards(1).data_bytes), registry.newest_shards(1, 10)) == ([key], [key])


@pytest.mark.parametrize(
    "fields",
    [
        {"consumed": ["registry/00000001.json"]},
        {"retired": ["traces/../channel/00000001.json"]},
        {"file": {"name": "../00000002/state.safetensors", "sha256": "0" * 64, "size": 1}},
        {"epoch": 7},
    ],
    ids=str,
)
def test_a_trainer_state_names_shards_and_its_own_data_only(registry: PodRegistry, fields: dict[str, Any]) -> None:
    state: TrainerState = put_trainer_state(registry)
    change(registry, Keys.trainer_state(state.epoch), **fields)
    with pytest.raises(InvalidRecord):
        registry.trainer_state_record(state.epoch)


def test_an_unreadable_registration_is_no_version(registry: PodRegistry) -> None:
    registry.objects.put(Keys.registration(2), b"{}")
    registry.objects.put(Keys.registration(3), b"x" * (2 << 20))
    assert [each.version for each in registry.registrations()] == [1, 0]
    assert registry.last_version() == 1


def test_weights_with_another_digest_than_the_registrations_are_refused(registry: PodRegistry, tmp_path: Path) -> None:
    key, manifest = manifest_of(registry)
    files = [file.model_dump() for file in manifest.files]
    change(registry, key, files=[files[0], files[1] | {"sha256": "0" * 64}])
    with pytest.raises(InvalidRecord, match="another digest"):
        registry.fetch_checkpoint(registry.registration(1), tmp_path / "into")
