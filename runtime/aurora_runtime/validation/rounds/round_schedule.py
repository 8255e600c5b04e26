"""The order of a measurement's batches. Pure, so that its fairness can be tested.

Invariants: within a round and a concurrency, every arm answers the same prompts, one arm right after the other. The two
drafts change their order from turn to turn, so that neither is always first, and the draft that ends a turn begins the
next one: no swap lies between them. The other arms need no swap and wander through the turn.
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
    number: int,
    drafts: Sequence[T],
    others: Sequence[T],
    concurrencies: Sequence[int],
    *,
    prompts_per_worker: int,
    available: int,
) -> list[Batch[T]]:
    """The batches of round ``number``, in order.

    Args:
        drafts: the arms between which the engine swaps. Their order rotates.
        others: the other arms.
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
        turns.append([Batch(arm, concurrency, prompts) for arm in _order(number + position, drafts, others)])
    return [batch for turn in _rotated(turns, number) for batch in turn]


def _order(turn: int, drafts: Sequence[T], others: Sequence[T]) -> list[T]:
    """The arms of a turn: the drafts rotated by one from turn to turn, and the others put in at wandering places."""
    order = _rotated(drafts, turn)
    for number, arm in enumerate(others):
        order.insert((turn + number) % (len(order) + 1), arm)
    return order


def _rotated(items: Sequence[T], by: int) -> list[T]:
    """``items`` rotated to the left."""
    by %= len(items)
    return [*items[by:], *items[:by]]
