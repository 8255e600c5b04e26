"""Examples kept for replay: bounded in bytes, spread over age, drawn as the recipe says.

Invariant: after an addition the memory holds no more than its bound (but for one example larger than it). When it is
full, examples at a pseudo-random place make room, so that the survivors' ages fall off geometrically: mostly recent,
not only recent. They come and go in spans of one shard, so that what survives is found again in few shards.

That is a reservoir over ages, not over domains, of which examples know nothing. Each further memory's worth of
traffic leaves 1/e of what was there: of a domain A that filled the memory, 37 % stay after as many bytes of a domain B,
13 % after twice as many. So an excursion is not paid with what was known before it, and traffic that never comes back
is forgotten in the end.

What goes, and what is drawn with a given generator, depend on the sequence of additions alone, shard by shard, and a
memory that :mod:`~aurora_runtime.training.state.replay_restore` filled again goes on as the one before would have.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.data.examples import Example

_STRIDE: Final = 2_654_435_761
"""Knuth's multiplicative hash: consecutive counters fall far apart."""
HALF_LIFE: Final = 64
"""Additions that halve a recent example's weight: a dozen batches of short requests, so that replay does not just
repeat the shard in hand. The memory of a large target (24 KiB a slot for one 4,096 wide) holds about as many and is
itself that recent; that of a small one holds thousands, where the choice matters."""

PARTS: Final = 64
"""A span is at most one part in so many of the memory, or a single example. Where shards are smaller they come and go
whole, and filling the memory again takes no more than it holds."""


class Choice(StrEnum):
    """Which examples of the memory are replayed. Each has a chance in every draw."""

    UNIFORM = "uniform"  # all alike
    RECENT = "recent"  # with a weight that halves every HALF_LIFE additions
    SURPRISING = "surprising"  # in proportion to the rounds that serving needed per token


@dataclass(frozen=True)
class Place:
    """Which examples a span holds."""

    shard: str
    first: int  # among the shard's examples
    count: int
    number: int  # of examples that were added to the memory before


@dataclass(frozen=True)
class _Kept:
    """An example, how many were added before it, and :func:`surprise` of it."""

    example: Example
    number: int
    surprise: float | None


@dataclass(frozen=True)
class _Span:
    place: Place
    kept: tuple[_Kept, ...]
    nbytes: int

    @property
    def slots(self) -> int:
        return sum(each.example.slots for each in self.kept)


class ReplayBuffer:
    """Examples with a bound of ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._spans: list[_Span] = []
        self._added = 0
        self.evicted = 0
        """Spans that made room, ever: what decides which goes next."""
        self.nbytes = 0
        self.slots = 0
        """Positions that one pass over the memory trains."""

    def __len__(self) -> int:
        return sum(len(span.kept) for span in self._spans)

    def add(self, examples: Sequence[Example], shard: str = "") -> None:
        """Keep all ``examples`` of ``shard``. Without its name they are not found again after a restart."""
        first = 0
        for run in _runs(examples, self._limit // PARTS):
            size = sum(example.nbytes for example in run)
            while self._spans and self.nbytes + size > self._limit:
                place = (self.evicted * _STRIDE % 2**32) * len(self._spans) >> 32
                self.evicted += 1
                gone = self._spans.pop(place)
                self.nbytes -= gone.nbytes
                self.slots -= gone.slots
            self._put(Place(shard, first, len(run), self._added), run)
            first += len(run)

    def put_back(self, place: Place, examples: Sequence[Example]) -> None:
        """Keep again what :meth:`places` named, of all ``examples`` of its shard, in that order."""
        self._put(place, examples[place.first : place.first + place.count])

    def _put(self, place: Place, examples: Sequence[Example]) -> None:
        kept = tuple(_Kept(example, place.number + n, surprise(example)) for n, example in enumerate(examples))
        self._spans.append(_Span(place, kept, sum(example.nbytes for example in examples)))
        self._added = place.number + place.count
        self.nbytes += self._spans[-1].nbytes
        self.slots += self._spans[-1].slots

    def places(self) -> list[Place]:
        """What is kept, oldest first."""
        return [span.place for span in self._spans]

    def all(self) -> list[Example]:
        """The kept examples, oldest first."""
        return [kept.example for kept in self._kept()]

    def _kept(self) -> list[_Kept]:
        return [kept for span in self._spans for kept in span.kept]

    def sample(self, slots: int, generator: torch.Generator, choice: Choice = Choice.UNIFORM) -> list[Example]:
        """Random distinct examples that fill ``slots`` (at least one example), or as many as there are: one after the
        other by the weights of ``choice`` among those not drawn yet."""
        kept = self._kept()
        order = self._order(kept, generator, choice).tolist()
        return pack([kept[i].example for i in order], slots, first_only=True)[0] if order else []

    def _order(self, kept: Sequence[_Kept], generator: torch.Generator, choice: Choice) -> Tensor:
        """Places ``[N]``, all of them, as drawn without replacement.

        A logarithmic weight plus Gumbel noise, sorted, is such a draw (Vieira 2014), and does not underflow for what
        is old."""
        if choice is Choice.UNIFORM:
            return torch.randperm(len(kept), generator=generator)
        weights = self._recency(kept) if choice is Choice.RECENT else _surprises(kept)
        waits = torch.empty(len(kept), dtype=torch.float64).exponential_(generator=generator)
        return (weights - waits.log()).argsort(descending=True, stable=True)

    def _recency(self, kept: Sequence[_Kept]) -> Tensor:
        """Logarithmic weights ``[N]`` float64."""
        numbers = torch.tensor([each.number for each in kept], dtype=torch.float64)
        return (numbers - self._added) * (math.log(2) / HALF_LIFE)


def _surprises(kept: Sequence[_Kept]) -> Tensor:
    """Logarithmic weights ``[N]`` float64; what is not known is taken for the mean of what is."""
    known = [each.surprise for each in kept if each.surprise is not None]
    mean = statistics.fmean(known) if known else 1.0
    found = [mean if each.surprise is None else each.surprise for each in kept]
    return torch.tensor(found, dtype=torch.float64).log()


def _runs(examples: Sequence[Example], most: int) -> Iterator[Sequence[Example]]:
    """Consecutive ``examples`` in groups of at most ``most`` bytes (a larger one alone)."""
    first, size = 0, 0
    for place, example in enumerate(examples):
        if place > first and size + example.nbytes > most:
            yield examples[first:place]
            first, size = place, 0
        size += example.nbytes
    if examples:
        yield examples[first:]


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
