"""The order of a measurement's batches. Pure, so that its fairness can be tested.

Invariants: within a round and a concurrency, every arm answers the same prompts, one arm right after the other. At
each concurrency the order rotates from round to round, so that no arm is always first after a pause or always last in a
slow minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Batch(Generic[T]):
    """The prompts, by their indices, that one arm answers at one concurrency."""

    arm: T
    concurrency: int
    prompts: tuple[int, ...]


def batches(
    number: int, arms: Sequence[T], concurrencies: Sequence[int], *, prompts_per_worker: int, available: int
) -> list[Batch[T]]:
    """The batches of round ``number``, in order.

    Args:
        prompts_per_worker: prompts for each concurrent worker.
        available: number of distinct prompts, at least ``prompts_per_worker`` times the highest concurrency. Successive
            batches walk through the prompts in a circle, so that rounds share as few prompts as possible.
    """
    turns: list[list[Batch[T]]] = []
    first = number * prompts_per_worker * sum(concurrencies)
    for position, concurrency in enumerate(concurrencies):
        count = prompts_per_worker * concurrency
        prompts = tuple((first + i) % available for i in range(count))
        first += count
        # Rounds and concurrencies count alike: with two drafts and two concurrencies, the draft that ends a turn begins
        # the next one, so that no swap lies between them.
        turns.append([Batch(arm, concurrency, prompts) for arm in _rotated(arms, number + position)])
    return [batch for turn in _rotated(turns, number) for batch in turn]


def _rotated(items: Sequence[T], by: int) -> list[T]:
    """``items`` rotated to the left."""
    by %= len(items)
    return [*items[by:], *items[:by]]
