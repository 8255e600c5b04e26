"""The choice of the prompts on which a candidate is measured, and of the text with which lookup begins."""

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
from aurora_runtime.validation.store_reads import MAX_CONVERSATIONS, Prompt, Traffic, read_traffic
from aurora_store.errors import (
    DigestMismatch,
    ObjectMissing,
    ObjectRefused,
    ObjectTooLarge,
)
from tests.unit.training import tiny


def trace(first: int, length: int = 6) -> RequestTrace:
    """A trace of a prompt that counts up from ``first``. The choice reads only its tokens."""
    prompt = [*range(first, first + length)]
    tokens = torch.tensor([*prompt, 7, 8], dtype=torch.int32)
    plain = tiny.trace(0, prompt=length, answer=2)
    return dataclasses.replace(plain, request=prompt_hash(prompt), tokens=tokens)


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


def held_out_prompts(registry: PodRegistry, *, wanted: int, needed: int) -> tuple[Prompt, ...]:
    return read_traffic(registry, 1, vocab_size=1000, wanted=wanted, needed=needed).prompts


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
    found = held_out_prompts(registry(shards), wanted=1000, needed=1)
    assert {p.request for p in found} == {t.request for t in held_out}
    assert len(found) == len(held_out)
    assert shards.read == [NEWER, NEW, OLD]
    assert all(len(p.tokens) == 6 for p in found), "a prompt holds no tokens of the answer"
    assert found == held_out_prompts(registry(shards), wanted=1000, needed=1)


def test_older_shards_are_not_read_when_the_newest_suffice() -> None:
    traces = [trace(i) for i in range(400)]
    shards = Shards({OLD: traces[:200], NEW: traces[200:]})
    assert len(held_out_prompts(registry(shards), wanted=5, needed=5)) == 5
    assert shards.read == [NEW]


def test_a_shard_that_the_trainer_deletes_meanwhile_is_skipped() -> None:
    traces = [trace(i) for i in range(400)]
    shards = Shards({OLD: traces, NEW: [], NEWER: traces[:200]})
    assert len(held_out_prompts(registry(shards), wanted=1000, needed=1)) == sum(t.held_out for t in traces)
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
    "a token beyond the vocabulary": encode(
        [dataclasses.replace(trace(0), request=8, tokens=torch.tensor([9, 1000] * 4))]
    ),
    "a prompt longer than its tokens": encode([dataclasses.replace(trace(0), request=8, prompt_length=99)]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_one_damaged_or_refused_shard_stops_no_measurement(damage: bytes | Exception) -> None:
    traces = [trace(i) for i in range(100)]
    shards = Shards({OLD: traces, NEW: traces}, damage)
    found = held_out_prompts(registry(shards), wanted=1000, needed=1)
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
        held_out_prompts(registry(shards), wanted=50, needed=50)


def test_a_prompt_that_does_not_fit_into_the_context_on_every_arm_is_not_measured_with() -> None:
    traffic = Traffic(tuple(Prompt(length, (1,) * length) for length in (6, 200, 7)), ((2,) * 300, (3,)))
    assert traffic.within(200, needed=3).prompts == traffic.prompts
    shorter = traffic.within(199, needed=2)
    assert [len(prompt.tokens) for prompt in shorter.prompts] == [6, 7]
    assert shorter.conversations == ((2,) * 7, (3,)), "no longer than the longest prompt, for which there is room"
    with pytest.raises(MeasurementError, match="maxNewTokens"):
        traffic.within(199, needed=3)


def test_too_few_prompts_is_an_error() -> None:
    with pytest.raises(MeasurementError):
        held_out_prompts(registry(Shards({OLD: [trace(0)]})), wanted=50, needed=50)
    with pytest.raises(MeasurementError, match="0 distinct"):
        held_out_prompts(registry(Shards({})), wanted=1, needed=1)


def test_only_one_turn_of_a_conversation_is_measured_with() -> None:
    turns = [dataclasses.replace(trace(first), request=8) for first in (10, 20)]
    assert len(held_out_prompts(registry(Shards({OLD: turns})), wanted=5, needed=1)) == 1


def test_lookup_begins_with_conversations_of_training_without_a_tag() -> None:
    old, new = [trace(number) for number in range(40)], [trace(number) for number in range(40, 80)]
    tagged = dataclasses.replace(next(t for t in new if not t.held_out), tag=7)
    shards = Shards({OLD: old, NEW: [tagged if t.request == tagged.request else t for t in new]})
    expected = [t for t in (*new, *old) if not t.held_out and t.request != tagged.request]
    found = read_traffic(registry(shards), 1, vocab_size=1000, wanted=1000, needed=1).conversations
    newest_first = tuple(tuple(t.tokens.tolist()) for t in expected[:MAX_CONVERSATIONS])
    assert found == newest_first, "the answers too"
