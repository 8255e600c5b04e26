"""Shards are split into training and held-out requests, and damaged shards are skipped."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.data.shards import ShardReader
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_runtime.validation.store_reads import read_traffic
from tests.unit.training import tiny


def reader_of(registry: PodRegistry) -> ShardReader:
    return ShardReader(registry, tiny.VOCAB, 3 * tiny.HIDDEN, Retrier())


def test_shards_are_split_by_request_and_consumed_once() -> None:
    registry, _ = tiny.memory_registry()
    traces = [tiny.trace(seed) for seed in range(40)]
    keys = [tiny.put_shard(registry, i, traces[i * 10 : i * 10 + 10]) for i in range(4)]
    reader, ledger = reader_of(registry), ShardLedger(registry, 1, Retrier())
    assert ledger.pending() == keys
    held_out, trained = set(), 0
    for key in keys:
        shard = reader.read(key)
        assert shard is not None
        held_out |= {held.request for held in shard.held_out}
        trained += len(shard.train)
        ledger.consume(key)
    assert held_out == {t.request for t in traces if t.held_out}
    assert trained == sum(not t.held_out for t in traces)
    assert held_out
    assert ledger.pending() == []
    assert ledger.total == 4


def test_trainer_and_validator_agree_about_the_prompts_that_a_measurement_can_use() -> None:
    """A prompt of 6,000 tokens is too long for a measurement, so it must not let one begin."""
    registry, _ = tiny.memory_registry()
    held_out = [trace for trace in (tiny.trace(seed) for seed in range(100)) if trace.held_out][:2]
    shard = reader_of(registry).read(tiny.put_shard(registry, 0, [held_out[0], long_prompt(held_out[1])]))
    assert shard is not None
    assert {held.request: held.measurable for held in shard.held_out} == {
        held_out[0].request: True,
        held_out[1].request: False,
    }
    prompts = read_traffic(registry, 1, vocab_size=tiny.VOCAB, wanted=2, needed=1).prompts
    assert [prompt.request for prompt in prompts] == [held_out[0].request]


def long_prompt(trace: RequestTrace) -> RequestTrace:
    """``trace`` behind 6,000 more tokens of its prompt, of which no hidden states are stored."""
    more = 6000
    return dataclasses.replace(
        trace,
        prompt_length=trace.prompt_length + more,
        hidden_start=trace.hidden_start + more,
        tokens=torch.cat([torch.ones(more, dtype=torch.int32), trace.tokens]),
        root=trace.root + more,
    )


def poison(trace: RequestTrace) -> RequestTrace:
    return dataclasses.replace(trace, hidden=torch.full_like(trace.hidden, float("nan")))


def test_a_damaged_shard_is_counted_and_skipped() -> None:
    registry, objects = tiny.memory_registry()
    keys = [tiny.put_shard(registry, i, [tiny.trace(i)]) for i in range(5)]
    data = [k.replace(".json", ".safetensors") for k in keys]
    objects.data[data[0]] = objects.data[data[0]][:-1] + b"!"  # flipped byte
    del objects.data[data[1]]
    objects.data[keys[2]] = b"{}"
    keys.append(tiny.put_shard(registry, 6, [poison(tiny.trace(6))]))
    narrow = dataclasses.replace(tiny.trace(7), hidden=tiny.trace(7).hidden[:, :5].contiguous())
    keys.append(tiny.put_shard(registry, 7, [narrow]))
    reader = reader_of(registry)
    assert [reader.read(k) is None for k in keys] == [True, True, True, False, False, True, True]
    assert reader.damaged == 5


def test_a_request_that_cannot_be_used_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    registry, _ = tiny.memory_registry()
    traces = [trace for trace in (tiny.trace(seed) for seed in range(9)) if not trace.held_out][:4]
    alone = reader_of(registry).read(tiny.put_shard(registry, 0, traces[1:3]))
    endless = dataclasses.replace(traces[0], uncaptured_mass=torch.full_like(traces[0].uncaptured_mass, torch.inf))
    reader = reader_of(registry)
    shard = reader.read(tiny.put_shard(registry, 1, [endless, *traces[1:3], poison(traces[3])]))
    assert shard is not None
    assert alone is not None
    assert [e.tokens.tolist() for e in shard.train] == [e.tokens.tolist() for e in alone.train]
    assert reader.damaged == 0
    assert "2 requests of shard" in caplog.text


def test_held_out_keeps_the_newest_request_of_each_number() -> None:
    held_out = HeldOutSet(3)
    examples = {seed: tuple(examples_of(tiny.trace(seed), tiny.VOCAB)) for seed in range(5)}
    for seed in (0, 1, 2, 0, 3):
        held_out.add(seed, examples[seed])
    assert [id(e) for e in held_out.newest_first()] == [id(examples[s][0]) for s in (3, 0, 2)]


def test_held_out_is_bounded_in_bytes() -> None:
    examples = {seed: tuple(examples_of(tiny.trace(seed), tiny.VOCAB)) for seed in range(5)}
    sizes = {seed: sum(example.nbytes for example in one) for seed, one in examples.items()}
    held_out = HeldOutSet(100, sizes[2] + sizes[3] + sizes[4])
    for seed in (0, 1, 2, 2, 3, 4):
        held_out.add(seed, examples[seed])
        assert held_out.nbytes <= sizes[2] + sizes[3] + sizes[4]
    assert held_out.nbytes == sum(example.nbytes for example in held_out.newest_first())
    assert {id(e) for e in held_out.newest_first()} >= {id(e) for e in examples[4]}
    held_out.add(0, examples[0], "shard")
    held_out.drop({"", "other"})
    assert (len(held_out), held_out.nbytes) == (1, sizes[0]), "what is dropped no longer counts"
    small = HeldOutSet(100, sizes[0] - 1)
    small.add(0, examples[0])
    assert (len(small), small.nbytes) == (0, 0)
