"""The order of a measurement's batches. Pure, so that its fairness can be tested.

Invariants: within a round and a concurrency, every arm answers the same prompts, one arm right after the other. The
order rotates from round to round, so that no arm is always first after a pause or always last in a slow minute.
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
    prompts_by_concurrency: dict[int, tuple[int, ...]] = {}
    first = number * prompts_per_worker * sum(concurrencies)
    for concurrency in concurrencies:
        count = prompts_per_worker * concurrency
        prompts_by_concurrency[concurrency] = tuple((first + i) % available for i in range(count))
        first += count
    return [
        Batch(arm, concurrency, prompts_by_concurrency[concurrency])
        for position, concurrency in enumerate(_rotated(concurrencies, number))
        for arm in _rotated(arms, number + position)
    ]


def _rotated(items: Sequence[T], by: int) -> list[T]:
    """``items`` rotated to the left."""
    by %= len(items)
    return [*items[by:], *items[:by]]
