"""Examples reach another process whole, through memory that both map, and a batch keeps nothing of that memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.training.data.batch import collate
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.kept_states import KeptStates, StateBlock
from aurora_runtime.training.objective.position_losses import LOSSES
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.shared_examples import ExampleReader, ExampleWriter, StepTable
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace


def examples(*seeds: int) -> list[Example]:
    traces = [tiny.trace(s, answer=4 + 7 * (s % 4)) if s % 2 else tree_trace(s) for s in seeds]
    return [example for trace in traces for example in examples_of(trace, tiny.VOCAB)]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def another(example: Example) -> Example:
    """An example as large as ``example`` that differs from it everywhere."""
    blocks = tuple(StateBlock(block.states + 1, block.scale) for block in example.aux.blocks)
    return dataclasses.replace(example, aux=KeptStates(example.start, blocks), tokens=example.tokens * 0)


def sent(table: StepTable) -> StepTable:
    return StepTable(**json.loads(json.dumps(dataclasses.asdict(table))))


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=4), min_size=2, max_size=4))
def test_every_rank_reads_its_examples_while_the_memory_grows(steps: list[list[int]]) -> None:
    writer, reader = ExampleWriter(), ExampleReader()
    for seeds in steps:
        own, other, third = examples(seeds[0]), examples(*seeds), examples(*reversed(seeds))
        table = sent(writer.write([own, other, third]))
        for rank, share in ((1, other), (2, third)):
            read = reader.read(table, rank)
            assert len(read) == len(share)
            assert all(same(one, two) for one, two in zip(read, share, strict=True))


def test_a_batch_outlives_the_next_write(tmp_path: Path) -> None:
    """The leader writes the next step's examples while ranks may still compute on the batch of the last."""
    writer, reader = ExampleWriter(), ExampleReader()
    _, vocabulary = tiny.draft_of(tiny.target(tmp_path))

    def batch(share: list[Example]) -> Any:
        return collate(share, 3, vocabulary, with_rejected=True)

    for share in (examples(2), examples(1, 2, 4)):
        collated = batch(reader.read(writer.write([[], share]), 1))
        writer.write([[], [another(e) for e in share]])
        expected = batch(share)
        for part in ("trunk", "targets"):
            one, other = vars(getattr(collated, part)), vars(getattr(expected, part))
            assert all(torch.equal(one[name], other[name]) for name in one)
        assert torch.equal(collated.weight, expected.weight)
        assert torch.equal(collated.trained_row, expected.trained_row)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_recipe_reaches_the_other_ranks(loss: str) -> None:
    recipe = Recipe(loss=LOSSES[loss], betas=(0.5, 0.75), discard=0.0)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
