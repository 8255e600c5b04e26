"""A resumed trainer holds the same examples, and evicts and draws as its predecessor would have."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.shards import HeldOutRequest, Shard, ShardReader
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import replay_restore
from tests.example_count import example_count
from tests.unit.training import tiny

SIZE = examples_of(tiny.trace(0), tiny.VOCAB)[0].nbytes
HELD_OUT = 4
BOUND = BatchBound(10_000, 60)


def reader_of(registry: PodRegistry) -> ShardReader:
    return ShardReader(registry, tiny.VOCAB, 3 * tiny.HIDDEN, Retrier())


@dataclass
class RestoredParts:
    """The parts of a trainer that are restored from shards."""

    registry: PodRegistry
    replay: ReplayBuffer
    held_out: HeldOutSet = field(default_factory=lambda: HeldOutSet(HELD_OUT))
    consumed: list[str] = field(default_factory=list)

    def learn(self, keys: Sequence[str]) -> None:
        reader = reader_of(self.registry)
        for key in keys:
            shard = reader.read(key)
            assert shard is not None
            self.replay.add(shard.train, key)
            for request, examples, measurable in shard.held_out:
                self.held_out.add(request, examples, key, measurable=measurable)
            self.consumed.append(key)

    def restarted(self, limit: int, retired: int = 0) -> RestoredParts:
        """The successor, restored from this one's state."""
        consumed = self.consumed[retired:]
        tensors = replay_restore.spans_state(self.replay, self.held_out, consumed)
        new = RestoredParts(self.registry, ReplayBuffer(limit), consumed=consumed)
        replay_restore.restore(tensors, consumed, reader_of(self.registry), new.replay, new.held_out)
        return new

    def contents(self) -> tuple[list[list[int]], list[list[int]]]:
        return (
            [example.tokens.tolist() for example in self.replay.examples()],
            [example.tokens.tolist() for example in self.held_out.newest_first()],
        )


def stored(sizes: Sequence[int]) -> tuple[PodRegistry, list[str]]:
    """A store with shards of ``sizes`` requests. Every prompt comes twice, so held-out prompts are repeated."""
    registry, _ = tiny.memory_registry()
    keys, seed = [], 0
    for number, count in enumerate(sizes):
        keys.append(tiny.put_shard(registry, number, [request((seed + n) // 2) for n in range(count)]))
        seed += count
    return registry, keys


@cache
def request(seed: int) -> RequestTrace:
    return tiny.trace(seed)


@settings(max_examples=example_count(50))
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.sampled_from([1, 5, 70, 300, 10_000]),
    st.integers(0, 12),
)
def test_replay_and_held_out_set_survive_any_restart(sizes: list[int], room: int, at: int) -> None:
    """The buffer has room for one example, for a few of one shard each, for spans of several, or for all."""
    registry, keys = stored(sizes)
    live = RestoredParts(registry, ReplayBuffer(room * SIZE))
    live.learn(keys[:at])
    resumed = live.restarted(room * SIZE)
    assert resumed.contents() == live.contents()
    assert resumed.replay.nbytes == live.replay.nbytes
    for parts in (live, resumed):
        parts.learn(keys[at:])
    assert resumed.contents() == live.contents()
    first, second = (torch.Generator().manual_seed(0) for _ in range(2))
    for _ in range(5):
        expected, actual = (
            live.replay.sample(BOUND, first),
            resumed.replay.sample(BOUND, second),
        )
        assert [each.tokens.tolist() for each in expected] == [each.tokens.tolist() for each in actual]


class CountingReader(ShardReader):
    """Records at each read how many of the former shards are still in memory."""

    def __init__(self, registry: PodRegistry) -> None:
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


def test_a_restore_reads_only_needed_shards_one_at_a_time() -> None:
    registry, keys = stored([1] * 40)
    live = RestoredParts(registry, ReplayBuffer(8 * SIZE))
    live.learn(keys)
    reader = CountingReader(registry)
    held_out = HeldOutSet(HELD_OUT)
    replay = ReplayBuffer(8 * SIZE)
    replay_restore.restore(replay_restore.spans_state(live.replay, live.held_out, keys), keys, reader, replay, held_out)
    assert max(reader.alive) <= 1, "at most one former shard is in memory"
    needed = {span.shard for span in live.replay.spans()} | live.held_out.shards_to_restore()
    assert reader.keys == [key for key in keys if key in needed]
    assert reader.keys != keys[-len(reader.keys) :], "older surviving shards are among them"


def test_only_the_examples_of_a_damaged_shard_are_lost(caplog: pytest.LogCaptureFixture) -> None:
    registry, keys = stored([2] * 4)
    live = RestoredParts(registry, ReplayBuffer(1 << 30))
    live.learn(keys)
    registry.delete_shard(keys[1])
    resumed = live.restarted(1 << 30)
    assert "damaged" in caplog.text
    assert {span.shard for span in resumed.replay.spans()} <= {keys[0], *keys[2:]}
    assert len(resumed.replay) >= len(live.replay) - 2


@pytest.mark.parametrize("limit_bytes", [SIZE, 1 << 30])
def test_a_resumed_trainer_counts_the_same_held_out_requests(limit_bytes: int) -> None:
    """Some are not kept, either because they have no examples or because the set has no room for their bytes."""
    registry, keys = stored([1] * 3)
    live = HeldOutSet(9, limit_bytes)
    read = {}
    for number, key in enumerate(keys):
        shard = reader_of(registry).read(key)
        assert shard is not None
        examples = tuple(examples_of(request(number), tiny.VOCAB))
        held_out = HeldOutRequest(number, examples if number < 2 else (), measurable=True)
        read[key] = Shard(key, shard.train, (held_out,))
        live.add(number, held_out.examples, key)
    assert live.count == 3
    replay = ReplayBuffer(1 << 30)
    tensors = replay_restore.spans_state(replay, live, keys)
    resumed = HeldOutSet(9, limit_bytes)
    replay_restore.restore(tensors, keys, FixedReader(registry, read), replay, resumed)
    assert resumed.count == live.count
    earlier = {name: tensor for name, tensor in tensors.items() if name != replay_restore.MEASURABLE}
    replay_restore.restore(earlier, keys, FixedReader(registry, read), replay, HeldOutSet(9))


class FixedReader(ShardReader):
    """Reads given shards."""

    def __init__(self, registry: PodRegistry, shards: dict[str, Shard]) -> None:
        super().__init__(registry, tiny.VOCAB, 3 * tiny.HIDDEN, Retrier())
        self._shards = shards

    def read(self, key: str) -> Shard | None:
        return self._shards[key]
