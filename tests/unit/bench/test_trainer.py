"""The parts that tests.bench.trainer measures add up to the trainer's own step."""

from __future__ import annotations

import torch

from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.traces import decode
from aurora_runtime.training.data.examples import examples_of
from tests.bench.trainer import (
    DRAFT_VOCABULARY,
    PARTS,
    SNAPSHOT,
    WHOLE_STEP,
    Meter,
    measure_step,
    new_session,
    one_batch_shards,
    table,
)

CPU = torch.device("cpu")
SHAPE = DraftConfig(32, 48, 4, 2, 8, 8, DRAFT_VOCABULARY + 100, DRAFT_VOCABULARY, 1e-5, 1e4, 512, (1, 3, 4))


def test_the_parts_in_their_order_equal_one_step() -> None:
    by_parts, whole = new_session(SHAPE, CPU), new_session(SHAPE, CPU)
    (shard,) = one_batch_shards(SHAPE, 1, prompt_tokens=20, answer_tokens=40)
    examples = [e for trace in decode(shard) for e in examples_of(trace, SHAPE.vocab_size)]
    assert len(examples) > 1
    assert len(examples) * max(e.slots for e in examples) <= whole.recipe.batch_slots
    assert sum(len(e.rejected) for e in examples) > 0
    meter = Meter(CPU, memory=False)
    measure_step(by_parts, shard, meter)
    for _ in range(2):  # the bench measures the whole step after the parts
        whole.step(examples)
    for one, other in zip(by_parts.draft.parameters(), whole.draft.parameters(), strict=True):
        assert torch.equal(one, other)
    assert meter.samples.keys() == {*PARTS, WHOLE_STEP, SNAPSHOT}
    assert meter.positions == [sum(e.slots for e in examples)]
    twice = Meter(CPU, False, {name: 2 * times for name, times in meter.samples.items()}, 2 * meter.positions)
    lines = table(twice, {name: [1.0, 2.0] for name in meter.samples}).splitlines()
    assert len(lines) == 2 + len(PARTS) + 3
    assert {line.count("|") for line in lines} == {6}
