"""The seed of a new pod's lookup: which answers it takes from the store, and what bad shards cost."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, Shape
from aurora_protocol.agent_api import EngineMode
from aurora_runtime.held_out_split import is_held_out, prompt_hash
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent import seed_writer
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.agent.pod_context import PodContext
from aurora_runtime.serving.agent.seed_writer import (
    CONTEXT_TOKENS,
    SeedKeeper,
    answers_of_shard,
    recent_answers,
    seeding_thread,
    write_seed,
)
from aurora_runtime.serving.capture.safetensors_writer import write_safetensors
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_runtime.serving.pod_records import EngineState
from aurora_runtime.serving.speculation.lookup_seed import decode_seed
from aurora_runtime.traces import RequestTrace, encode, shard_tensors
from aurora_store.errors import ObjectRefused
from tests.assets.trainer_process import put_shards
from tests.unit.fakes import FolderObjects, lineage

VOCABULARY = 1000
SHARED = [prompt for first in range(80) if not is_held_out(prompt_hash(prompt := [first, first + 1]))]
HELD_OUT = [prompt for first in range(80) if is_held_out(prompt_hash(prompt := [first, first + 1]))]


def trace(prompt: list[int], answer: list[int]) -> RequestTrace:
    """A trace of a request without verify rounds. Its hidden states stand for what a seed never reads."""
    none = torch.zeros(0, dtype=torch.int32)
    tokens = torch.tensor([*prompt, *answer], dtype=torch.int32)
    return RequestTrace(
        request=prompt_hash(prompt),
        prompt_length=len(prompt),
        hidden_start=0,
        tokens=tokens,
        hidden=torch.ones(len(tokens), 12, dtype=torch.float16),
        root=none,
        node_count=none,
        accepted=none,
        version=none,
        source=none,
        node_token=none,
        node_parent=torch.zeros(0, dtype=torch.int16),
        node_accepted=torch.zeros(0, dtype=torch.bool),
        top_ids=torch.zeros(0, 4, dtype=torch.int32),
        top_logprobs=torch.zeros(0, 4, dtype=torch.float16),
        uncaptured_mass=torch.zeros(0, dtype=torch.float16),
    )


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda first, size: data[first : first + size]


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    (tmp_path / "store").mkdir()
    return FolderObjects(tmp_path / "store")


@pytest.fixture
def registry(objects: FolderObjects) -> PodRegistry:
    return PodRegistry(objects)


def answers(registry: PodRegistry) -> list[list[int]]:
    return [answer.tolist() for answer in recent_answers(registry, 1, VOCABULARY)]


def test_a_seed_has_no_answer_of_a_tagged_request(registry: PodRegistry) -> None:
    tagged = dataclasses.replace(trace(SHARED[0], [900]), tag=5)
    put_shards(registry, [tagged, trace(SHARED[1], [901])], 2)
    assert [answer[-1] for answer in answers(registry)] == [901]


def test_tags_of_another_number_of_requests_give_nothing() -> None:
    tensors = shard_tensors([dataclasses.replace(trace(SHARED[0], [900]), tag=5)])
    tensors["tag"] = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="other tags"):
        list(answers_of_shard(reader(save(tensors))))


def test_a_seed_has_the_newest_answers_last_and_each_once(registry: PodRegistry, tmp_path: Path) -> None:
    first, second, third = SHARED[:3]
    put_shards(
        registry, [trace(first, [900, 901]), trace(second, [902]), trace(first, [900, 901]), trace(third, [])], 2
    )
    assert write_seed(PodFolder(tmp_path), registry, 1, VOCABULARY) == 2
    seed = decode_seed(PodFolder(tmp_path).lookup_seed.read_bytes(), VOCABULARY)
    assert [list(text) for text in seed] == [[*second, 902], [*first, 900, 901]]


def test_answers_to_held_out_prompts_are_left_out(registry: PodRegistry) -> None:
    put_shards(registry, [trace(HELD_OUT[0], [900]), trace(SHARED[0], [901]), trace(HELD_OUT[1], [902])], 3)
    assert answers(registry) == [[*SHARED[0], 901]]


def test_only_the_end_of_a_prompt_is_kept(registry: PodRegistry) -> None:
    prompt = next(p for first in range(80) if not is_held_out(prompt_hash(p := list(range(first, first + 100)))))
    put_shards(registry, [trace(prompt, [900])], 1)
    assert answers(registry) == [[*prompt[-CONTEXT_TOKENS:], 900]]


def test_answers_with_tokens_outside_the_vocabulary_are_left_out(registry: PodRegistry) -> None:
    put_shards(registry, [trace(SHARED[0], [900]), trace(SHARED[1], [VOCABULARY]), trace(SHARED[2], [-1])], 3)
    assert answers(registry) == [[*SHARED[0], 900]]


def test_a_seed_is_bounded_and_reads_no_more_shards_than_it_needs(
    registry: PodRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed_writer, "MAX_SEED_TOKENS", 8)
    old, *_ = put_shards(registry, [trace(prompt, [900, 901]) for prompt in SHARED[:4]], 1)
    read: list[str] = []

    def record(key: str, first: int, size: int) -> bytes:
        read.append(key)
        return PodRegistry.shard_range(registry, key, first, size)

    monkeypatch.setattr(registry, "shard_range", record)
    assert answers(registry) == [[*SHARED[2], 900, 901], [*SHARED[3], 900, 901]]
    assert old not in read


def test_a_damaged_or_deleted_shard_costs_only_its_own_answers(registry: PodRegistry, objects: FolderObjects) -> None:
    damaged, nested, deleted, empty, _ = put_shards(registry, [trace(prompt, [900]) for prompt in SHARED[:5]], 1)
    (objects.path / damaged.replace(".json", ".safetensors")).write_bytes(b"\xff" * 100)
    (objects.path / nested.replace(".json", ".safetensors")).write_bytes(struct.pack("<Q", 60_000) + b"[" * 60_000)
    (objects.path / deleted.replace(".json", ".safetensors")).unlink()
    (objects.path / empty.replace(".json", ".safetensors")).write_bytes(b"")
    assert answers(registry) == [[*SHARED[4], 900]]


def test_a_shard_that_the_store_refuses_costs_only_its_own_answers(
    registry: PodRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lifecycle rule may have archived the shard."""
    refused, _ = put_shards(registry, [trace(prompt, [900]) for prompt in SHARED[:2]], 1)

    def read(key: str, first: int, size: int) -> bytes:
        if key == refused:
            raise ObjectRefused("not this one")
        return PodRegistry.shard_range(registry, key, first, size)

    monkeypatch.setattr(registry, "shard_range", read)
    assert answers(registry) == [[*SHARED[1], 900]]


def test_a_store_that_is_down_costs_only_the_seed(
    registry: PodRegistry, objects: FolderObjects, tmp_path: Path
) -> None:
    objects.down = True
    assert write_seed(PodFolder(tmp_path), registry, 1, VOCABULARY) == 0
    assert not PodFolder(tmp_path).lookup_seed.exists()


@pytest.mark.parametrize("down", [True, False], ids=["the store fails", "no answers are left"])
def test_an_old_seed_does_not_stay(registry: PodRegistry, objects: FolderObjects, tmp_path: Path, down: bool) -> None:
    folder = PodFolder(tmp_path)
    (shard,) = put_shards(registry, [trace(SHARED[0], [900])], 1)
    assert write_seed(folder, registry, 1, VOCABULARY) == 1
    registry.delete_shard(shard)
    objects.down = down
    assert write_seed(folder, registry, 1, VOCABULARY) == 0
    assert not folder.lookup_seed.exists()


def pod_of(folder: PodFolder, registry: PodRegistry) -> PodContext:
    return cast(PodContext, SimpleNamespace(folder=folder, drafts=DraftCache(folder, registry)))


def report_engine(folder: PodFolder, boot: str, *, ready: bool) -> None:
    state = EngineState(boot=boot, ready=ready, started_at=datetime.now(UTC), mode=EngineMode.DRAFT, order_id="")
    write_atomically(folder.engine, state.to_json())


def test_each_engine_start_gets_a_new_seed_that_ends_when_the_engine_is_ready(
    registry: PodRegistry, tmp_path: Path
) -> None:
    """An engine that starts weeks later must not look up answers that the store deleted meanwhile."""
    folder = PodFolder(tmp_path)
    write_atomically(folder.lineage, lineage().to_json())
    old, _ = put_shards(registry, [trace(SHARED[0], [0]), trace(SHARED[1], [1])], 1)
    keeper = SeedKeeper(pod_of(folder, registry), registry)
    keeper.advance()
    first = folder.lookup_seed.read_bytes()
    report_engine(folder, "boot-1", ready=False)
    keeper.advance()
    assert folder.lookup_seed.read_bytes() == first
    report_engine(folder, "boot-1", ready=True)
    keeper.advance()
    assert not folder.lookup_seed.exists(), "the engine has read it"
    registry.delete_shard(old)
    for boot in ("boot-2", "boot-3"):  # the second one never became ready
        report_engine(folder, boot, ready=False)
        keeper.advance()
        assert folder.lookup_seed.read_bytes() != first
        folder.lookup_seed.write_bytes(first)
        keeper.advance()
        assert folder.lookup_seed.read_bytes() == first, "once for each start"


def test_an_agent_that_starts_beside_a_ready_engine_removes_the_seed(registry: PodRegistry, tmp_path: Path) -> None:
    folder = PodFolder(tmp_path)
    write_atomically(folder.lineage, lineage().to_json())
    put_shards(registry, [trace(SHARED[0], [0])], 1)
    folder.lookup_seed.write_bytes(b"old")
    report_engine(folder, "boot-1", ready=True)
    SeedKeeper(pod_of(folder, registry), registry).advance()
    assert not folder.lookup_seed.exists()


@pytest.mark.parametrize(
    ("fields", "seeded"),
    [
        ({"lookup": LookupScope.SPECULATOR}, True),
        ({"lookup": LookupScope.SPECULATOR, "shape": Shape.FIXED}, False),
        ({"lookup": LookupScope.REQUEST}, False),
        ({"lookup": LookupScope.OFF}, False),
    ],
)
def test_a_seed_is_kept_where_lookup_uses_it(
    registry: PodRegistry, tmp_path: Path, fields: dict[str, str], seeded: bool
) -> None:
    folder = PodFolder(tmp_path)
    draft = DraftSpec.model_validate({"shape": Shape.ADAPTIVE} | fields)
    assert (seeding_thread(pod_of(folder, registry), registry, draft) is not None) == seeded


def test_a_pod_without_a_lineage_gets_no_seed(registry: PodRegistry, tmp_path: Path) -> None:
    folder = PodFolder(tmp_path)
    folder.lookup_seed.write_bytes(b"old")
    SeedKeeper(pod_of(folder, registry), registry).advance()
    assert not folder.lookup_seed.exists()


def test_the_hidden_states_of_a_shard_are_not_read(tmp_path: Path) -> None:
    traces = [trace(prompt, [900] * 500) for prompt in SHARED[:60]]
    size = write_safetensors(tmp_path / "shard", shard_tensors(traces))[1]
    data, spans = (tmp_path / "shard").read_bytes(), list[int]()

    def read(first: int, count: int) -> bytes:
        spans.append(count)
        return data[first : first + count]

    assert len(list(answers_of_shard(read))) == 60
    assert sum(spans) < size / 3


@given(st.data())
def test_a_shard_with_any_damage_is_refused_or_gives_tokens(data: st.DataObject) -> None:
    good = bytearray(encode([trace(prompt, [900, 901]) for prompt in SHARED[:3]]))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        found = list(answers_of_shard(reader(cut)))
    except ValueError:
        return
    assert all(answer.dtype == "<i4" and answer.ndim == 1 for answer in found)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "I32", "shape": [2], "data_offsets": [0, 9]},
        {"dtype": "I32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "I32", "shape": [2.0], "data_offsets": [0.0, 8.0]},
        {"dtype": "I32", "shape": ["2"], "data_offsets": ["0", "8"]},
        {"dtype": "I32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]},
    ],
)
def test_a_header_that_describes_no_token_ids_is_refused(entry: object) -> None:
    header = json.dumps({"index": {"dtype": "I64", "shape": [0, 7], "data_offsets": [0, 0]}, "tokens": entry}).encode()
    with pytest.raises(ValueError, match="tensor"):
        list(answers_of_shard(reader(struct.pack("<Q", len(header)) + header + bytes(8))))
