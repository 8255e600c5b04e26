"""A bucket writer attacks the agent, the validator and the trainer's fence through a real S3 server."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, FileRef, RootOwner
from aurora_protocol.record import MAX_NUMBER
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_runtime.validation.store_reads import fetch_draft
from aurora_store import FencedObjectStore, Keys, ObjectStore
from aurora_store.errors import NotRootOwner, StoreError
from aurora_store.objects import sha256_file
from tests.assets.s3 import S3
from tests.assets.signing import ROOT_OWNER
from tests.unit.fakes import draft_tensors, lineage, publish_bytes, safetensors

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
OTHER = "99999999"
SHARD_BYTES = 96 << 20


@pytest.fixture
def writer(s3: S3, request: pytest.FixtureRequest) -> ObjectStore:
    """What the bucket writer uses."""
    return ObjectStore(s3.config(root=f"aurora/{abs(hash(request.node.name))}/chat"))


@pytest.fixture
def registry(writer: ObjectStore, tmp_path: Path) -> PodRegistry:
    """The store with version 1, as pods open it."""
    registry = PodRegistry(FencedObjectStore(writer.config))
    registry.create_lineage(lineage())
    publish_bytes(registry, tmp_path / "sources", 1, safetensors(draft_tensors()))
    return registry


def change_manifest(
    writer: ObjectStore, registry: PodRegistry, change: Callable[[list[dict[str, object]]], object]
) -> None:
    key = f"{registry.registration(1).checkpoint}manifest.json"
    manifest = json.loads(writer.get(key))
    change(manifest["files"])
    writer.put(key, json.dumps(manifest).encode())


ATTACKS: dict[str, Callable[[list[dict[str, object]]], object]] = {
    "a file outside the folder": lambda files: files[0].update(name="../../json.py"),
    "an absolute path": lambda files: files[0].update(name="/tmp/json.py"),  # noqa: S108 - an attack
    "a third file": lambda files: files.append(files[0] | {"name": "modeling_evil.py"}),
    "no configuration": lambda files: files.remove(files[0]),
    "the weights of another draft": lambda files: files[1].update(sha256=files[0]["sha256"]),
    "a file of a terabyte": lambda files: files[1].update(size=1 << 40),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_changed_manifest_puts_no_file_anywhere(
    writer: ObjectStore, registry: PodRegistry, tmp_path: Path, attack: Callable[[list[dict[str, object]]], object]
) -> None:
    registration = registry.registration(1)
    change_manifest(writer, registry, attack)
    folder = PodFolder(tmp_path / "pod")
    folder.drafts.mkdir(parents=True)
    write_atomically(folder.lineage, lineage().to_json())
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DraftRefused):
        DraftCache(folder, registry).stage(1, registration.digest)
    with pytest.raises(DraftRefused):
        fetch_draft(registry, registration, lineage(), tmp_path / "candidate")
    assert set(tmp_path.rglob("*")) == before


def takeover(epoch: int) -> Channel:
    """A record that gives the root to somebody else."""
    return Channel(
        epoch=epoch,
        lineage=1,
        active=1,
        reason=ChannelReason.RESTORED,
        owner=RootOwner(id=OTHER, namespace="n", name="other", since=NOW),
        created=NOW,
    )


@pytest.mark.parametrize("name", [f"{MAX_NUMBER}.json", "zzz.json", "1.json"])
def test_a_channel_record_out_of_sequence_does_not_close_the_root(
    writer: ObjectStore, registry: PodRegistry, name: str
) -> None:
    writer.put(Keys.CHANNEL + name, takeover(MAX_NUMBER).to_json())
    registry.register(registry.registration(1).model_copy(update={"version": 2}))
    assert registry.last_version() == 2
    writer.put(Keys.channel(1), takeover(1).to_json())
    with pytest.raises(NotRootOwner, match="n/other"):
        registry.register(registry.registration(1).model_copy(update={"version": 3}))


def test_an_unreadable_channel_record_in_sequence_closes_the_root_until_it_is_removed(
    writer: ObjectStore, registry: PodRegistry
) -> None:
    """It may be a takeover, so nothing is written on a guess."""
    writer.put(Keys.channel(1), b"{}")
    with pytest.raises(StoreError, match="does not tell who owns the root"):
        registry.register(registry.registration(1).model_copy(update={"version": 2}))
    writer.delete(Keys.channel(1))
    registry.register(registry.registration(1).model_copy(update={"version": 2}))


def test_pods_write_again_once_a_forged_channel_record_is_removed_that_they_had_believed(
    writer: ObjectStore, registry: PodRegistry
) -> None:
    """The records before it hold again. Only a channel without records says that the root was deleted."""
    initial = takeover(1).model_copy(update={"owner": ROOT_OWNER, "reason": ChannelReason.INITIAL})
    writer.put(Keys.channel(1), initial.to_json())
    registry.register(registry.registration(1).model_copy(update={"version": 2}))
    writer.put(Keys.channel(2), takeover(2).to_json())
    with pytest.raises(NotRootOwner, match="n/other"):
        registry.register(registry.registration(1).model_copy(update={"version": 3}))
    writer.delete(Keys.channel(2))
    registry.register(registry.registration(1).model_copy(update={"version": 3}))
    writer.delete(Keys.channel(1))
    with pytest.raises(NotRootOwner, match="has no record: the root was deleted or emptied"):
        registry.register(registry.registration(1).model_copy(update={"version": 4}))


def test_an_agent_uploads_a_large_shard_without_holding_it_in_memory(registry: PodRegistry, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    data = spool / "pod-0-boot-00000000.safetensors"
    with data.open("wb") as file:
        for number in range(SHARD_BYTES >> 20):
            file.write(number.to_bytes(1, "big") * (1 << 20))
    digest = sha256_file(data)
    manifest = ShardManifest(
        lineage=1,
        pod="pod-0",
        boot="boot",
        seq=0,
        file=FileRef(name=data.name, sha256=digest, size=SHARD_BYTES),
        requests=1,
        tokens=1,
        answer_tokens=1,
        rounds=1,
        proposed=0,
        accepted=0,
        dropped_records=0,
        created=NOW,
    )
    data.with_suffix(".json").write_bytes(manifest.to_json())
    uploader = Uploader(spool, registry)
    tracemalloc.start()
    began = time.monotonic()
    uploader.upload_spool()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert uploader.counters.uploaded == 1
    assert peak < 16 << 20, f"{peak >> 20} MiB for a shard of {SHARD_BYTES >> 20} MiB"
    assert time.monotonic() - began < 300
    (key,) = registry.list_shards(1).data_bytes
    assert len(registry.shard(key)[1]) == SHARD_BYTES, "its digest is verified"
    assert list(spool.iterdir()) == []
