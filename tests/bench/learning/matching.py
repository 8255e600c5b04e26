"""What is held equal when recipes are compared: the optimizer steps, or the traffic.

With equal steps who replays takes bigger batches, so that no recipe learns more only because it moves more often. With
equal traffic every recipe makes the steps that the trainer makes beside fresh batches: a replayed one is one more.
Invariant: either way all recipes see the same fresh requests between two looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final

import torch

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.slot_batches import batch_by_slots
from aurora_runtime.training.optim.recipe import Recipe

STEP_REQUESTS: Final = 2
"""Requests per step where each is used once, with equal steps; who replays once takes twice as many per batch."""
SHARE: Final = 4
"""With equal steps a shard has a multiple of this many, so that no, one and three replays can share them out."""


class Match(StrEnum):
    STEPS = "steps"
    TRAFFIC = "traffic"


def batches(
    match: Match,
    examples: Sequence[Example],
    memory: ReplayBuffer,
    recipe: Recipe,
    generator: torch.Generator,
) -> Iterator[list[Example]]:
    """The batches that ``recipe`` takes from fresh ``examples``, which ``memory`` already holds, a step each."""
    order = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    groups = _equal_steps(order, recipe) if match is Match.STEPS else batch_by_slots(order, recipe.batch_slots)
    for group in groups:
        yield group
        widest = max(example.slots for example in group)
        slots = len(group) * widest if match is Match.STEPS else recipe.batch_slots
        for _ in range(recipe.replay):
            yield memory.sample(slots, generator, recipe.replay_sampling)


def _equal_steps(order: Sequence[Example], recipe: Recipe) -> list[list[Example]]:
    """Fresh groups, so many that with their replays they make as many steps as with any other recipe."""
    steps = max(1, len(order) // (SHARE * STEP_REQUESTS)) * SHARE
    count, rest = divmod(steps, 1 + recipe.replay)
    if rest:
        raise ValueError(f"{steps} steps cannot be shared out over batches of which {recipe.replay} are replayed")
    cut = [list(order[len(order) * i // count : len(order) * (i + 1) // count]) for i in range(count)]
    return [group for group in cut if group]
