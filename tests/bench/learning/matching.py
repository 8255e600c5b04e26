"""The batches that a recipe takes, when recipes are compared at equal steps or at equal traffic.

- Equal steps: a recipe that replays takes larger batches, so that no recipe learns more only because it takes more
  optimizer steps.
- Equal traffic: every recipe takes the steps that the trainer takes beside fresh batches. A replayed batch is one more
  step.

Invariant: either way, all recipes see the same fresh requests between two evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final

import torch

from aurora_runtime.training.data.batch_bound import BatchBound
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.optim.recipe import Recipe

REQUESTS_PER_STEP: Final = 2
"""Fresh requests per step, with equal steps and no replay. With one replay, a batch has twice as many requests."""
STEPS_MULTIPLE: Final = 4
"""With equal steps, the steps of a shard are a multiple of this number. They then divide evenly into fresh and replayed
batches for recipes with zero, one and three replays."""


class Match(StrEnum):
    """The quantity that is equal for all recipes of a comparison."""

    STEPS = "steps"
    TRAFFIC = "traffic"


def batches(
    match: Match,
    examples: Sequence[Example],
    replay_buffer: ReplayBuffer,
    recipe: Recipe,
    generator: torch.Generator,
) -> Iterator[list[Example]]:
    """The batches of ``recipe``, one optimizer step each.

    Args:
        examples: fresh examples, which ``replay_buffer`` holds already.
    """
    order = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    groups = _equal_steps(order, recipe) if match is Match.STEPS else recipe.batch_bound.batches(order)
    for group in groups:
        yield group
        own = BatchBound(
            *(len(group) * max(sizes) for sizes in zip(*((e.root_count, e.slots) for e in group), strict=True))
        )
        bound = own if match is Match.STEPS else recipe.batch_bound
        for _ in range(recipe.replay):
            yield replay_buffer.sample(bound, generator)


def _equal_steps(order: Sequence[Example], recipe: Recipe) -> list[list[Example]]:
    """Groups of fresh examples. With their replays, they take as many steps as the groups of any other recipe."""
    steps = max(1, len(order) // (STEPS_MULTIPLE * REQUESTS_PER_STEP)) * STEPS_MULTIPLE
    count, rest = divmod(steps, 1 + recipe.replay)
    if rest:
        raise ValueError(f"{steps} steps do not divide into groups of one fresh and {recipe.replay} replayed batches")
    cut = [list(order[len(order) * i // count : len(order) * (i + 1) // count]) for i in range(count)]
    return [group for group in cut if group]
