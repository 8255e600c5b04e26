"""A trainer that resumes holds what the one before held, and forgets and draws on as that one would have."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.replay_sampling import ReplaySampling
from aurora_runtime.training.data.shards import Shard, ShardReader
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import replay_restore
from aurora_store import Registry
from tests.unit.training import tiny

SIZE = examples_of(tiny.trace(0), tiny.VOCAB)[0].nbytes
HELD_OUT = 4


def reader_of(registry: Registry) -> ShardReader:
    return ShardReader(registry, tiny.VOCAB, 3 * tiny.HIDDEN, Retrier())


@dataclass
class Holder:
    """What of a trainer is recalled."""

    registry: Registry
    memory: ReplayBuffer
    held_out: HeldOutSet = field(default_factory=lambda: HeldOutSet(HELD_OUT))
    consumed: list[str] = field(default_factory=list)

    def learn(self, keys: Sequence[str]) -> None:
        reader = reader_of(self.registry)
        for key in keys:
            shard = reader.read(key)
            assert shard is not None
            self.memory.add(shard.train, key)
            for request, examples in shard.held_out:
                self.held_out.add(request, examples, key)
            self.consumed.append(key)

    def killed(self, limit: int, retired: int = 0) -> Holder:
        """Its successor, which has its state."""
        consumed = self.consumed[retired:]
        tensors = replay_restore.spans_state(self.memory, self.held_out, consumed)
        new = Holder(self.registry, ReplayBuffer(limit), consumed=consumed)
        replay_restore.restore(tensors, consumed, reader_of(self.registry), new.memory, new.held_out)
        return new

    def held(self) -> tuple[list[list[int]], list[list[int]]]:
        return (
            [example.tokens.tolist() for example in self.memory.examples()],
            [example.tokens.tolist() for example in self.held_out.newest_first()],
        )


def stored(sizes: Sequence[int]) -> tuple[Registry, list[str]]:
    """A store with shards of so many requests; every prompt comes twice, so that held-out ones are asked again."""
    registry, _ = tiny.memory_registry()
    keys, seed = [], 0
    for number, count in enumerate(sizes):
        keys.append(tiny.put_shard(registry, number, [request((seed + n) // 2) for n in range(count)]))
        seed += count
    return registry, keys


@cache
def request(seed: int) -> RequestTrace:
    return tiny.trace(seed)


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.sampled_from([1, 5, 70, 300, 10_000]),
    st.integers(0, 12),
    st.sampled_from(ReplaySampling),
)
def test_what_is_held_survives_any_restart(sizes: list[int], room: int, at: int, choice: ReplaySampling) -> None:
    """The memory has room for one example, for a few of one shard each, for spans of several, or for all."""
    registry, keys = stored(sizes)
    live = Holder(registry, ReplayBuffer(room * SIZE))
    live.learn(keys[:at])
    resumed = live.killed(room * SIZE)
    assert resumed.held() == live.held()
    assert resumed.memory.nbytes == live.memory.nbytes
    for holder in (live, resumed):
        holder.learn(keys[at:])
    assert resumed.held() == live.held()
    first, second = (torch.Generator().manual_seed(0) for _ in range(2))
    for _ in range(5):
        mine, theirs = live.memory.sample(60, first, choice), resumed.memory.sample(60, second, choice)
        assert [each.tokens.tolist() for each in mine] == [each.tokens.tolist() for each in theirs]


@pytest.mark.parametrize(("parts", "whole"), [(300, True), (50, False)])
def test_shards_that_are_small_beside_the_memory_come_and_go_whole(parts: int, whole: bool) -> None:
    """So that those which are read again hold nothing else."""
    registry, keys = stored([3] * 150)
    live = Holder(registry, ReplayBuffer(parts * SIZE))
    live.learn(keys)
    assert live.memory.evicted > 0
    reader = reader_of(registry)
    shards = {key: reader.read(key) for key in {place.shard for place in live.memory.spans()}}
    held = sum(len(shard.train) for shard in shards.values() if shard)
    assert (held == len(live.memory)) is whole


def test_of_retired_shards_nothing_is_told() -> None:
    registry, keys = stored([4] * 6)
    live = Holder(registry, ReplayBuffer(1 << 30))
    live.learn(keys)
    for key in keys[:2]:
        registry.delete_shard(key)
    reader = reader_of(registry)
    consumed = keys[2:]
    memory, held_out = ReplayBuffer(1 << 30), HeldOutSet(HELD_OUT)
    replay_restore.restore(
        replay_restore.spans_state(live.memory, live.held_out, consumed), consumed, reader, memory, held_out
    )
    assert reader.damaged == 0, "none was looked for in vain"
    assert {place.shard for place in memory.spans()} == set(consumed)


class Watched(ShardReader):
    """Sees, whenever a shard is read, how many of the former ones are still there."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry, tiny.VOCAB, 3 * tiny.HIDDEN, Retrier())
        self._given = list[weakref.ref[Shard]]()
        self.alive, self.keys = list[int](), list[str]()

    def read(self, key: str) -> Shard | None:
        self.alive.append(sum(ref() is not None for ref in self._given))
        self.keys.append(key)
        shard = super().read(key)
        if shard:
            self._given.append(weakref.ref(shard))
        return shard


def test_refilling_reads_what_is_held_shard_by_shard() -> None:
    registry, keys = stored([1] * 40)
    live = Holder(registry, ReplayBuffer(8 * SIZE))
    live.learn(keys)
    watched = Watched(registry)
    held_out = HeldOutSet(HELD_OUT)
    memory = ReplayBuffer(8 * SIZE)
    replay_restore.restore(
        replay_restore.spans_state(live.memory, live.held_out, keys), keys, watched, memory, held_out
    )
    assert max(watched.alive) <= 1, "the one before goes when the next is there"
    needed = {place.shard for place in live.memory.spans()} | live.held_out.shards()
    assert watched.keys == [key for key in keys if key in needed]
    assert watched.keys != keys[-len(watched.keys) :], "older ones that survived are among them"


def test_a_damaged_shard_costs_what_was_in_it(caplog: pytest.LogCaptureFixture) -> None:
    registry, keys = stored([2] * 4)
    live = Holder(registry, ReplayBuffer(1 << 30))
    live.learn(keys)
    registry.delete_shard(keys[1])
    resumed = live.killed(1 << 30)
    assert "damaged" in caplog.text
    assert {place.shard for place in resumed.memory.spans()} <= {keys[0], *keys[2:]}
    assert len(resumed.memory) >= len(live.memory) - 2
