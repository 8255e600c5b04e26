"""``store verify`` names each object of a speculator that is damaged or missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from aurora_cli.commands import store as store_commands
from aurora_cli.verification import Verification
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys
from aurora_store.errors import ObjectRefused, StoreError
from tests.assets.trainer_output import put_trainer_state
from tests.unit.cli.fake_cluster import FakeApiServer, resource
from tests.unit.fakes import FolderObjects, draft_tensors, lineage, publish_bytes, safetensors
from tests.unit.operator.worlds import NOW, channel, evidence

SHARD = Keys.shard(1, "chat-a", "b1", 0, NOW)
DRAFT = safetensors(draft_tensors())


@pytest.fixture(name="objects")
def _objects(tmp_path: Path) -> FolderObjects:
    """A store with a lineage, two versions, evidence, a shard and a trainer state."""
    objects = FolderObjects(tmp_path / "store")
    registry = PodRegistry(objects)
    registry.create_lineage(lineage())
    for version in (0, 1):
        publish_bytes(registry, tmp_path / "drafts", version, DRAFT)
    objects.put(Keys.channel(1), channel(0).to_json())
    objects.put(Keys.evidence(1, 1), evidence(1).to_json())
    objects.put(f"{SHARD}.safetensors", b"data")
    objects.put(f"{SHARD}.json", b"{}")
    put_trainer_state(registry)
    return objects


def faults_of(objects: FolderObjects, *, digests: bool = False) -> list[str]:
    check = Verification(objects, digests=digests)
    check.run()
    return [f"{key}: {message}" for key, message in check.faults]


def weights_of(objects: FolderObjects, version: int) -> str:
    return f"{PodRegistry(objects).registration(version).checkpoint}model.safetensors"


def test_a_whole_store_has_no_faults(objects: FolderObjects) -> None:
    assert faults_of(objects, digests=True) == []


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda o: o.delete(weights_of(o, 1)), "model.safetensors, which is missing"),
        (lambda o: o.put(weights_of(o, 1), b"short"), "and the store holds 5"),
        (lambda o: o.put(Keys.evidence(1, 1), b"{}"), "evidence/00000001/00000001.json: Evidence: "),
        (lambda o: o.put(Keys.channel(2), b"nonsense"), "channel/00000002.json: Channel: "),
        (lambda o: o.delete(f"{SHARD}.safetensors"), "the shard that it names is missing"),
        (lambda o: o.delete(Keys.registration(0)), "registry/00000000.json: it is missing, and channel/00000001.json"),
        (
            lambda o: (o.put(Keys.channel(2), channel(1, 2, 0).to_json()), o.delete(Keys.registration(0))),
            "channel/00000002.json names it as the previous version",
        ),
        (lambda o: o.put("backup/old.tar", b"x"), "backup/old.tar: no part of Aurora writes such an object"),
        (lambda o: o.put(Keys.registration(1), b"x" * (1 << 20) + b"x"), Keys.registration(1)),
        (lambda o: o.put(Keys.channel(2), channel(0).to_json()), "belong to channel/00000001.json"),
        (lambda o: o.put(Keys.registration(2), o.get(Keys.registration(1))), "belong to registry/00000001.json"),
        (lambda o: o.put(Keys.lineage(2), o.get(Keys.lineage(1))), "belong to lineage/00000001.json"),
        (lambda o: o.put(Keys.evidence(1, 2), evidence(1).to_json()), "belong to evidence/00000001/00000001.json"),
        (lambda o: o.put("channel/1.json", channel(0).to_json()), "channel/1.json: the record's own numbers belong"),
        (lambda o: o.put(Keys.trainer_state(9), o.get(Keys.trainer_state(1))), "belong to trainer/state/00000001.json"),
        (lambda o: o.put(Keys.TRAINER_STATUS, b"[]"), "trainer/status.json: TrainerStatus: "),
    ],
)
def test_each_damage_is_named(objects: FolderObjects, damage: Callable[[FolderObjects], None], expected: str) -> None:
    damage(objects)
    assert any(expected in fault for fault in faults_of(objects)), faults_of(objects)


def test_the_weights_of_an_expired_version_may_be_gone_unless_it_serves(objects: FolderObjects) -> None:
    registry = PodRegistry(objects)
    for version in (0, 1):
        registry.expire(version, NOW)
        objects.delete(f"{registry.registration(version).checkpoint}manifest.json")
        objects.delete(weights_of(objects, version))
    assert [fault.partition(":")[0] for fault in faults_of(objects)] == [Keys.registration(0)]


def test_changed_weights_of_the_same_size_are_found_by_their_digest(objects: FolderObjects) -> None:
    objects.put(weights_of(objects, 1), DRAFT[:-1] + b"\x07")
    assert faults_of(objects) == []
    assert any("digest" in fault or "model.safetensors" in fault for fault in faults_of(objects, digests=True))


@pytest.mark.parametrize("error", [ObjectRefused("InvalidObjectState")])
def test_an_object_that_the_store_alone_refuses_is_a_fault_and_the_others_are_checked(
    objects: FolderObjects, error: StoreError
) -> None:
    registration = PodRegistry(objects).registration(1)
    refused = (Keys.channel(1), f"{registration.checkpoint}manifest.json")
    objects.refused = dict.fromkeys(refused, error)
    objects.put("backup/old.tar", b"x")
    found = faults_of(objects)
    assert [fault.partition(":")[0] for fault in found] == ["backup/old.tar", Keys.channel(1), Keys.registration(1)]
    assert found[1:] == [f"{Keys.channel(1)}: {error}", f"{Keys.registration(1)}: its draft: {error}"]
    objects.refused = {weights_of(objects, 1): error}
    assert f"{Keys.registration(1)}: its draft: {error}" in faults_of(objects, digests=True)


def test_verify_exits_with_1_if_something_is_damaged_or_the_store_does_not_answer(
    server: FakeApiServer, objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_commands, "open_store", lambda *_, **__: objects)
    server.add(resource())
    result = server.run("store", "verify", "chat")
    assert (result.exit_code, result.stdout[:7]) == (0, "whole: ")
    objects.delete(weights_of(objects, 0))
    assert "1 faults in " in server.run("store", "verify", "chat").stdout
    result = server.run("store", "verify", "chat", "-o", "json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["faults"][0]["key"] == Keys.registration(0)
    objects.down = True
    result = server.run("store", "verify", "chat")
    assert (result.exit_code, result.stderr) == (1, "error: the store is down\n")
