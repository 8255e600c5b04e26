"""Examples kept for replay: bounded in bytes, spread over age, drawn as the recipe says.

Invariant: the memory never holds more than its bound (but for one example larger than it). When it is full, an example
at a pseudo-random place makes room, so that the survivors' ages fall off geometrically: mostly recent, not only recent.

That is a reservoir over ages, not over domains, of which examples know nothing. Each further memory's worth of
traffic leaves 1/e of what was there: of a domain A that filled the memory, 37 % stay after as many bytes of a domain B,
13 % after twice as many. So an excursion is not paid with what was known before it, and traffic that never comes back
is forgotten in the end.

What goes, and what is drawn with a given generator, depend on the sequence of additions alone: a memory rebuilt by the
same additions goes on as the other would have. A restart adds only the newest shards again, a memory's worth of them
(``main.refill``), so it keeps that promise until more than this was consumed, and then costs the older survivors.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.examples import Example

_STRIDE: Final = 2_654_435_761
"""Knuth's multiplicative hash: consecutive counters fall far apart."""
HALF_LIFE: Final = 64
"""Additions that halve a recent example's weight: a dozen batches of short requests, so that replay does not just
repeat the shard in hand. The memory of a large target (24 KiB a slot for one 4,096 wide) holds about as many and is
itself that recent; that of a small one holds thousands, where the choice matters."""


class Choice(StrEnum):
    """Which examples of the memory are replayed. Each has a chance in every draw."""

    UNIFORM = "uniform"  # all alike
    RECENT = "recent"  # with a weight that halves every HALF_LIFE additions
    SURPRISING = "surprising"  # in proportion to the rounds that serving needed per token


@dataclass(frozen=True)
class _Kept:
    """An example, how many were added before it, and :func:`surprise` of it."""

    example: Example
    number: int
    surprise: float | None


class Memory:
    """Examples with a bound of ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[_Kept] = []
        self._added = 0
        self._evicted = 0
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, example: Example) -> None:
        while self._kept and self.nbytes + example.nbytes > self._limit:
            place = (self._evicted * _STRIDE % 2**32) * len(self._kept) >> 32
            self._evicted += 1
            self.nbytes -= self._kept.pop(place).example.nbytes
        self._kept.append(_Kept(example, self._added, surprise(example)))
        self._added += 1
        self.nbytes += example.nbytes

    def all(self) -> list[Example]:
        """What is kept, oldest first."""
        return [kept.example for kept in self._kept]

    def sample(self, slots: int, generator: torch.Generator, choice: Choice = Choice.UNIFORM) -> list[Example]:
        """Random distinct examples that fill ``slots`` (at least one example), or as many as there are: one after the
        other by the weights of ``choice`` among those not drawn yet."""
        order = self._order(generator, choice).tolist()
        return pack([self._kept[i].example for i in order], slots, first_only=True)[0] if order else []

    def _order(self, generator: torch.Generator, choice: Choice) -> Tensor:
        """Places ``[N]``, all of them, as drawn without replacement.

        A logarithmic weight plus Gumbel noise, sorted, is such a draw (Vieira 2014), and does not underflow for what
        is old."""
        if choice is Choice.UNIFORM:
            return torch.randperm(len(self._kept), generator=generator)
        weights = self._recency() if choice is Choice.RECENT else self._surprises()
        waits = torch.empty(len(self._kept), dtype=torch.float64).exponential_(generator=generator)
        return (weights - waits.log()).argsort(descending=True, stable=True)

    def _recency(self) -> Tensor:
        """Logarithmic weights ``[N]`` float64."""
        numbers = torch.tensor([kept.number for kept in self._kept], dtype=torch.float64)
        return (numbers - self._added) * (math.log(2) / HALF_LIFE)

    def _surprises(self) -> Tensor:
        """Logarithmic weights ``[N]`` float64; what is not known is taken for the mean of what is."""
        known = [kept.surprise for kept in self._kept if kept.surprise is not None]
        mean = statistics.fmean(known) if known else 1.0
        found = [mean if kept.surprise is None else kept.surprise for kept in self._kept]
        return torch.tensor(found, dtype=torch.float64).log()


def surprise(example: Example) -> float | None:
    """How badly serving's draft did: verify rounds per committed token, from 1 (all rejected) down to 1 / (1 + steps);
    None when no round began in the example.

    This is what the example cost, so its weight is proportional to what can be saved, and it is never 0. It is part of
    the trace: free, and the same after a restart, where a loss that training remembers would be lost. It is as old as
    the trace: what a former draft got wrong stays surprising, whatever was learnt since.
    """
    accepted = example.accepted[example.accepted >= 0]
    rounds = accepted.numel()
    return rounds / (rounds + int(accepted.sum())) if rounds else None


def pack(examples: list[Example], slots: int, *, first_only: bool = False) -> list[list[Example]]:
    """Consecutive ``examples`` in groups whose padded size stays within ``slots`` (a larger example goes alone)."""
    groups: list[list[Example]] = []
    widest = 0
    for example in examples:
        widest = max(widest, example.slots)
        if groups and (len(groups[-1]) + 1) * widest <= slots:
            groups[-1].append(example)
            continue
        if groups and first_only:
            break
        groups.append([example])
        widest = example.slots
    return groups
