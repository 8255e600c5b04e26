"""One tag is erased: its traces are gone from every shard, the others' stay, whenever a kill comes."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from aurora_protocol.draft_records import Registration
from aurora_protocol.pod_settings import StateType
from aurora_protocol.training_records import ShardManifest
from aurora_runtime import tag_erasure
from aurora_runtime.errors import ErasureUnfinished
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.tag_erasure import Erased, TagErasure
from aurora_runtime.traces import RequestTrace, decode, state_type_of
from aurora_runtime.training.lineage import utc_now
from tests.unit.training import tiny

TAG, OTHER = 5, 6


def tagged(seed: int, tag: int = TAG) -> RequestTrace:
    return replace(tiny.trace(seed), tag=tag)


def erase(registry: PodRegistry, tag: int = TAG) -> Erased:
    return TagErasure(registry, [tag]).run()


def stored(registry: PodRegistry) -> dict[str, list[tuple[int, int]]]:
    """Prompt's hash and tag of each trace in each shard. Every shard is undamaged."""
    return {
        key: [(trace.request, trace.tag) for trace in decode(registry.shard(key)[1])]
        for key in registry.list_shards(1).data_bytes
    }


@pytest.fixture(name="store")
def _store() -> tuple[PodRegistry, tiny.MemoryObjects]:
    """A shard without the tag, one with some of it, and one with nothing else."""
    registry, objects = tiny.memory_registry()
    tiny.put_shard(registry, 0, [tiny.trace(0), tagged(1, OTHER)])
    tiny.put_shard(registry, 1, [tagged(2), tiny.trace(3), tagged(4), tagged(5, OTHER)])
    tiny.put_shard(registry, 2, [tagged(6), tagged(7)])
    return registry, objects


def test_the_tags_traces_go_and_all_others_stay_under_the_same_keys(
    store: tuple[PodRegistry, tiny.MemoryObjects],
) -> None:
    registry, objects = store
    before, untouched = stored(registry), dict(objects.data)
    erased = erase(registry)
    after = stored(registry)
    assert after == {key: [each for each in traces if each[1] != TAG] for key, traces in before.items()}
    for key in (key for key in untouched if "-00000000." in key):
        assert objects.data[key] == untouched[key], "a shard without the tag is not touched"
    assert (erased.requests, erased.shards, erased.unreadable, erased.scanned) == (4, 2, 0, 3)
    manifests = [registry.shard_manifest(key) for key in after]
    assert [manifest.requests for manifest in manifests] == [2, 2, 0]


def test_several_tags_are_erased_at_once(store: tuple[PodRegistry, tiny.MemoryObjects]) -> None:
    registry, _ = store
    assert TagErasure(registry, [TAG, OTHER]).run().requests == 6
    assert {tag for traces in stored(registry).values() for _, tag in traces} == {0}


@pytest.mark.parametrize("state_type", StateType)
def test_the_traces_that_stay_keep_their_bytes(state_type: StateType) -> None:
    registry, _ = tiny.memory_registry()
    key = tiny.put_shard(registry, 0, [tagged(2), tiny.trace(3)], state_type)
    (_, before) = decode(registry.shard(key)[1])
    erase(registry)
    data = registry.shard(key)[1]
    (after,) = decode(data)
    assert torch.equal(after.hidden, before.hidden)
    assert state_type_of(data) is state_type


def test_an_agent_that_tries_again_after_the_erasure_brings_nothing_back(
    tmp_path: Path, store: tuple[PodRegistry, tiny.MemoryObjects]
) -> None:
    """An agent that never got the store's answer uploads the shard again, after it was rewritten."""
    registry, objects = store
    for seq in ("-00000001.", "-00000002."):
        key = next(key for key in registry.list_shards(1).data_bytes if seq in key)
        manifest, raw = registry.shard(key)
        (tmp_path / "spooled").write_bytes(raw)
        erase(registry)
        rewritten = dict(objects.data)
        assert registry.put_shard(manifest, tmp_path / "spooled") == key
        assert objects.data == rewritten


@pytest.mark.parametrize("with_tag", [False, True])
def test_an_upload_under_way_becomes_a_shard_without_the_tag(*, with_tag: bool) -> None:
    """The agent's manifest comes later, or never."""
    registry, objects = tiny.memory_registry()
    key = tiny.put_shard(registry, 0, [tagged(1, TAG if with_tag else OTHER), tiny.trace(2)])
    before = objects.data.pop(key)
    erased = erase(registry)
    assert (erased.requests, [tag for _, tag in stored(registry)[key]]) == ((1, [0]) if with_tag else (0, [OTHER, 0]))
    manifest, former = registry.shard_manifest(key), ShardManifest.from_json(before)
    assert (manifest.pod, manifest.boot, manifest.seq) == (former.pod, former.boot, former.seq)
    assert manifest.requests == former.requests - erased.requests


def test_a_shard_that_nobody_can_read_is_deleted_and_counted(store: tuple[PodRegistry, tiny.MemoryObjects]) -> None:
    registry, objects = store
    keys = list(registry.list_shards(1).data_bytes)
    objects.data[keys[0].replace(".json", ".safetensors")] = b"x" * 100
    data = keys[1].replace(".json", ".safetensors")
    objects.data[data] = objects.data[data][:-1] + b"?"  # a readable head with the tag, and another digest
    objects.data[keys[2]] = b"no manifest"
    assert erase(registry).unreadable == 3
    assert stored(registry) == {}
    assert not [key for key in objects.data if key.startswith("traces/")]


@pytest.mark.parametrize("keeps_header", [False, True])
def test_a_shard_of_which_the_store_lost_the_end_stops_no_erasure(
    store: tuple[PodRegistry, tiny.MemoryObjects], *, keeps_header: bool
) -> None:
    """S3 refuses a range that begins at an object's end, or beyond it."""
    registry, objects = store
    key = tiny.put_shard(registry, 3, [tiny.trace(8)])
    data = key.replace(".json", ".safetensors")
    (header_bytes,) = struct.unpack("<Q", objects.data[data][:8])
    objects.data[data] = objects.data[data][: 8 + header_bytes if keeps_header else 0]
    erased = erase(registry)
    assert (erased.unreadable, erased.requests, key in stored(registry)) == (1, 4, False)


def test_traces_of_a_former_lineage_are_erased_too(store: tuple[PodRegistry, tiny.MemoryObjects]) -> None:
    registry, objects = store
    for key in [key for key in objects.data if "-00000001." in key]:
        data = objects.data.pop(key).replace(b'"lineage": 1', b'"lineage": 2')
        objects.put(key.replace("traces/00000001/", "traces/00000002/"), data)
    assert erase(registry).requests == 4
    assert {trace.tag for key in registry.list_shards(2).data_bytes for trace in decode(registry.shard(key)[1])} == {
        0,
        OTHER,
    }


@pytest.mark.parametrize(
    "key",
    ["traces/x.json", "traces/x/y.json", "traces/99999999999/y.safetensors", "traces/00000001/0001-01-01/00/a-b-1"],
)
def test_what_no_agent_wrote_stops_no_erasure(store: tuple[PodRegistry, tiny.MemoryObjects], key: str) -> None:
    registry, objects = store
    objects.put(key, b"x")
    objects.put(f"{key}.safetensors", objects.data[next(k for k in objects.data if k.endswith("1.safetensors"))])
    assert erase(registry).requests >= 4
    assert erase(registry).requests == 0


def test_a_client_that_goes_on_sending_the_tag_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, _ = tiny.memory_registry()
    seq, real = 0, registry.replace_shard

    def replace_and_receive(*arguments: object) -> None:
        nonlocal seq
        real(*arguments)  # type: ignore[arg-type]
        seq += 1
        tiny.put_shard(registry, seq, [tagged(seq)])

    tiny.put_shard(registry, 0, [tagged(0)])
    monkeypatch.setattr(registry, "replace_shard", replace_and_receive)
    with pytest.raises(ErasureUnfinished, match=f"erased {tag_erasure.MAX_SCANS} requests"):
        erase(registry)


def test_drafts_that_may_have_learned_from_an_erased_trace_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, _ = tiny.memory_registry()
    now = utc_now().replace(minute=0, second=0, microsecond=0)  # the hour in the key of a shard
    registrations = [
        Registration(
            version=version,
            lineage=lineage,
            checkpoint=f"checkpoints/{version}/",
            digest=hashlib.sha256(b"").hexdigest(),
            trained_tokens=0,
            created=now + timedelta(hours=hours),
        )
        for version, lineage, hours in ((0, 1, 1), (1, 1, -1.5), (2, 1, -0.5), (3, 2, 1), (4, 1, 2))
    ]
    monkeypatch.setattr(registry, "registrations", lambda: iter(reversed(registrations)))
    tiny.put_shard(registry, 0, [tagged(0)])
    assert erase(registry).versions == (2, 4), (
        "neither the untrained draft, nor an older one, nor another lineage; the pod's clock may be ahead by an hour"
    )
    assert erase(registry).versions == ()
