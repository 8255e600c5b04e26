"""Which examples of the replay buffer are drawn.

Every weighting gives each example a chance in every draw. Weights are logarithmic: adding Gumbel noise and sorting is a
weighted draw without replacement (Vieira 2014), and does not underflow for old examples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.data.examples import Example

HALF_LIFE_ADDITIONS: Final = 64
"""Later additions that halve an example's weight in ``ReplaySampling.RECENT``: a dozen batches of short requests, so
that replay does not just repeat the current shard. The buffer of a large target (24 KiB a slot for one 4,096 wide)
holds about as many examples and is itself that recent. The buffer of a small target holds thousands, where the
weighting matters."""


class ReplaySampling(StrEnum):
    """How examples of the replay buffer are weighted."""

    UNIFORM = "uniform"  # all with the same weight
    RECENT = "recent"  # with a weight that halves every HALF_LIFE_ADDITIONS
    PRIORITIZED = "prioritized"  # in proportion to the drafted rounds that serving needed per token


@dataclass(frozen=True)
class ReplayedExample:
    """An example in the replay buffer."""

    example: Example
    added_before: int  # examples that were added to the buffer before this one
    priority: float | None  # see priority()


def priority(example: Example) -> float | None:
    """Drafted rounds per token they committed: 1 when all proposals were rejected, down to 1 / (1 + steps).

    None when the draft proposed nothing in the example. Rounds are the cost of serving the example, so the weight is
    proportional to the possible saving, and never 0. The value is part of the trace, so it costs nothing and survives a
    restart, which a loss remembered by training would not. The value does not change with training: an example that an
    earlier draft got wrong keeps its priority.
    """
    accepted = example.accepted[example.accepted >= 0]
    rounds = accepted.numel()
    return rounds / (rounds + int(accepted.sum())) if rounds else None


def draw_order(
    kept: Sequence[ReplayedExample], added: int, sampling: ReplaySampling, generator: torch.Generator
) -> Tensor:
    """The indices ``[N]`` of all ``kept`` examples in the order of a draw without replacement.

    ``added`` is the number of examples ever added to the buffer.
    """
    if sampling is ReplaySampling.UNIFORM:
        return torch.randperm(len(kept), generator=generator)
    log_weights = _recency(kept, added) if sampling is ReplaySampling.RECENT else _log_priorities(kept)
    noise = torch.empty(len(kept), dtype=torch.float64).exponential_(generator=generator)
    return (log_weights - noise.log()).argsort(descending=True, stable=True)


def _recency(kept: Sequence[ReplayedExample], added: int) -> Tensor:
    """Logarithmic weights ``[N]`` float64."""
    numbers = torch.tensor([each.added_before for each in kept], dtype=torch.float64)
    return (numbers - added) * (math.log(2) / HALF_LIFE_ADDITIONS)


def _log_priorities(kept: Sequence[ReplayedExample]) -> Tensor:
    """Logarithmic weights ``[N]`` float64; an unknown priority counts as the mean of the known ones."""
    known = [each.priority for each in kept if each.priority is not None]
    mean = statistics.fmean(known) if known else 1.0
    return torch.tensor([mean if each.priority is None else each.priority for each in kept], dtype=torch.float64).log()
