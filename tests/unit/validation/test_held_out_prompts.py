"""The choice of the prompts on which a candidate is measured."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from safetensors.torch import save

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.errors import MeasurementError
from aurora_runtime.held_out_split import prompt_hash
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, encode, shard_tensors
from aurora_runtime.validation import held_out_prompts as chooser
from aurora_runtime.validation.held_out_prompts import (
    FEW_SHARDS,
    held_out_prompts,
    recorded_conversations,
)
from aurora_store.errors import (
    DigestMismatch,
    ObjectMissing,
    ObjectRefused,
    ObjectTooLarge,
    StoreError,
)


def trace(first: int, length: int = 6) -> RequestTrace:
    """A trace without verify rounds, because the choice reads only the prompt."""
    prompt = [first + i for i in range(length)]
    none = torch.zeros(0, dtype=torch.int32)
    return RequestTrace(
        request=prompt_hash(prompt),
        prompt_length=length,
        hidden_start=0,
        tokens=torch.tensor([*prompt, 7, 8], dtype=torch.int32),
        hidden=torch.zeros(0, 12, dtype=torch.float16),
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


class Shards:
    """The reading methods of a registry, over shards in memory, oldest first. A shard without traces was deleted.

    ``damage`` is what a reader gets of the newest shard.
    """

    def __init__(self, shards: dict[str, list[RequestTrace]], damage: bytes | Exception | None = None) -> None:
        self.shards, self.damage = shards, damage
        self.read: list[str] = []

    def newest_shards(self, lineage: int, limit: int) -> list[str]:
        return list(reversed(self.shards))[:limit]

    def shard(self, key: str) -> tuple[ShardManifest | None, bytes]:
        self.read.append(key)
        if self.damage is not None and key == list(self.shards)[-1]:
            if isinstance(self.damage, Exception):
                raise self.damage
            return None, self.damage
        if not self.shards[key]:
            raise ObjectMissing(key)
        return None, encode(self.shards[key])


def registry(shards: Shards) -> PodRegistry:
    return cast(PodRegistry, shards)


OLD, NEW, NEWER = (
    "traces/00000001/2026-01-01/05/pod-b-xx-00000000.json",
    "traces/00000001/2026-01-01/06/pod-b-xx-00000001.json",
    "traces/00000001/2026-01-01/06/pod-a-xx-00000002.json",
)


def test_only_held_out_prompts_newest_first_without_repeats() -> None:
    traces = [trace(i) for i in range(400)]
    held_out = [t for t in traces if t.held_out]
    assert 20 < len(held_out) < 100
    shards = Shards({OLD: traces[:200], NEW: traces[200:], NEWER: [traces[0], *traces[390:]]})
    found = held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=1000, needed=1)
    assert {p.request for p in found} == {t.request for t in held_out}
    assert len(found) == len(held_out)
    assert shards.read == [NEWER, NEW, OLD]
    assert all(len(p.tokens) == 6 for p in found), "a prompt holds no tokens of the answer"
    assert found == held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=1000, needed=1)


def test_older_shards_are_not_read_when_the_newest_suffice() -> None:
    traces = [trace(i) for i in range(400)]
    shards = Shards({OLD: traces[:200], NEW: traces[200:]})
    assert len(held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=5, needed=5)) == 5
    assert shards.read == [NEW]


def test_small_shards_are_read_until_there_are_enough_prompts_but_no_more_large_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces = [trace(i) for i in range(1000)]
    assert sum(t.held_out for t in traces[-FEW_SHARDS:]) < 50
    keys = [f"traces/00000001/2026-01-01/05/pod-b-xx-{number:08}.json" for number in range(len(traces))]
    shards = Shards({key: [one] for key, one in zip(keys, traces, strict=True)})
    assert len(held_out_prompts(registry(shards), 1, vocab_size=2000, wanted=50, needed=50)) == 50
    monkeypatch.setattr(chooser, "LARGE_DOWNLOAD_BYTES", 1)
    shards.read.clear()
    with pytest.raises(MeasurementError):
        held_out_prompts(registry(shards), 1, vocab_size=2000, wanted=50, needed=50)
    assert len(shards.read) == FEW_SHARDS


def test_a_shard_that_the_trainer_deletes_meanwhile_is_skipped() -> None:
    traces = [trace(i) for i in range(400)]
    shards = Shards({OLD: traces, NEW: [], NEWER: traces[:200]})
    assert len(held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=1000, needed=1)) == sum(
        t.held_out for t in traces
    )
    assert shards.read == [NEWER, NEW, OLD]


DAMAGE: dict[str, bytes | Exception] = {
    "another digest": DigestMismatch("the digest differs"),
    "too large": ObjectTooLarge("more than 1 byte"),
    "archived": ObjectRefused("InvalidObjectState: restore the object"),
    "no manifest": InvalidRecord("ShardManifest: lineage: Field required"),
    "no safetensors": b"x" * 100,
    "empty": b"",
    "no tensors": save({}),
    "a negative request": save(shard_tensors([dataclasses.replace(trace(0), request=-8)])),
    "a token beyond the vocabulary": encode([dataclasses.replace(trace(0), request=8, tokens=torch.tensor([9, 1000]))]),
    "a prompt longer than its tokens": encode([dataclasses.replace(trace(0), request=8, prompt_length=99)]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_one_damaged_or_refused_shard_stops_no_measurement(damage: bytes | Exception) -> None:
    traces = [trace(i) for i in range(100)]
    shards = Shards({OLD: traces, NEW: traces}, damage)
    found = held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=1000, needed=1)
    assert {prompt.request for prompt in found} == {t.request for t in traces if t.held_out}
    assert shards.read == [NEW, OLD]


def test_a_store_that_refuses_every_shard_ends_the_search_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: str) -> tuple[ShardManifest | None, bytes]:
        shards.read.append(key)
        raise ObjectRefused("the credentials lack s3:GetObject")

    keys = [f"traces/00000001/2026-01-01/05/pod-b-xx-{number:08}.json" for number in range(20)]
    shards = Shards({key: [trace(0)] for key in keys})
    monkeypatch.setattr(shards, "shard", refuse)
    with pytest.raises(MeasurementError, match="20 more shards cannot be read: the credentials lack s3:GetObject"):
        held_out_prompts(registry(shards), 1, vocab_size=1000, wanted=50, needed=50)


def test_a_prompt_that_does_not_fit_into_the_context_on_every_arm_is_not_measured_with() -> None:
    short = [trace(first) for first in range(100) if trace(first).held_out]
    near_the_limit = [dataclasses.replace(trace(first, 200), request=8 * first) for first in range(3)]
    shards = Shards({OLD: short, NEW: near_the_limit})

    def lengths(longest: int | None) -> set[int]:
        found = held_out_prompts(registry(shards), 1, vocab_size=9000, wanted=100, needed=1, longest=longest)
        return {len(prompt.tokens) for prompt in found}

    assert lengths(199) == {6}
    assert lengths(200) == {6, 200}
    assert lengths(None) == {6, 200}, "the context length is not known"
    needed = len(short) + 1
    with pytest.raises(MeasurementError, match="maxNewTokens"):
        held_out_prompts(registry(shards), 1, vocab_size=9000, wanted=100, needed=needed, longest=199)


def test_too_few_prompts_is_an_error() -> None:
    with pytest.raises(MeasurementError):
        held_out_prompts(registry(Shards({OLD: [trace(0)]})), 1, vocab_size=1000, wanted=50, needed=50)
    with pytest.raises(MeasurementError, match="0 distinct"):
        held_out_prompts(registry(Shards({})), 1, vocab_size=1000, wanted=1, needed=1)


def test_only_one_turn_of_a_conversation_is_measured_with() -> None:
    turns = [dataclasses.replace(trace(first), request=8) for first in (10, 20)]
    assert len(held_out_prompts(registry(Shards({OLD: turns})), 1, vocab_size=1000, wanted=5, needed=1)) == 1


def test_lookup_begins_with_conversations_of_training_without_a_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = [trace(number) for number in range(40)], [trace(number) for number in range(40, 80)]
    tagged = dataclasses.replace(next(t for t in new if not t.held_out), tag=7)
    shards = Shards({OLD: old, NEW: [tagged if t.request == tagged.request else t for t in new]})
    expected = [t for t in (*new, *old) if not t.held_out and t.request != tagged.request]
    found = recorded_conversations(registry(shards), 1, longest=7)
    assert found == tuple(tuple(t.tokens[:7].tolist()) for t in expected[:64]), "newest shards first, the answer too"
    monkeypatch.setattr(chooser, "MAX_CONVERSATIONS", 3)
    assert recorded_conversations(registry(shards), 1, longest=7) == found[:3]


@pytest.mark.parametrize("damage", [StoreError("HTTP 503"), b"no shard", ObjectMissing("deleted")])
def test_lookup_begins_with_fewer_conversations_when_the_store_fails(damage: bytes | Exception) -> None:
    shards = Shards({OLD: [trace(1)], NEW: [trace(2)]}, damage)
    assert recorded_conversations(registry(shards), 1, longest=7) == ()
