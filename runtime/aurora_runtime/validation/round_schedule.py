"""The order of a measurement: pure, so that its fairness can be tested.

Invariants: within a round and a concurrency every arm answers the very same prompts, one arm right after the other;
the order rotates from round to round, so that no arm is always first after a pause or always last in a slow minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Batch(Generic[T]):
    """One arm's turn: the prompts (indices) answered at one concurrency."""

    arm: T
    concurrency: int
    prompts: tuple[int, ...]


def rotated(items: Sequence[T], by: int) -> list[T]:
    """``items`` rotated to the left."""
    by %= len(items)
    return [*items[by:], *items[:by]]


def batches(
    number: int, arms: Sequence[T], concurrencies: Sequence[int], *, prompts_per_worker: int, available: int
) -> list[Batch[T]]:
    """The batches of round ``number``.

    Args:
        prompts_per_worker: prompts per unit of concurrency.
        available: distinct prompts there are, at least ``prompts_per_worker`` times the highest concurrency. Successive
            batches walk through them in a circle, so that rounds share as few prompts as possible.
    """
    per_round = prompts_per_worker * sum(concurrencies)
    chosen: dict[int, tuple[int, ...]] = {}
    at = number * per_round
    for concurrency in concurrencies:
        count = prompts_per_worker * concurrency
        chosen[concurrency] = tuple((at + i) % available for i in range(count))
        at += count
    return [
        Batch(arm, concurrency, chosen[concurrency])
        for place, concurrency in enumerate(rotated(concurrencies, number))
        for arm in rotated(arms, number + place)
    ]


def settled(kinds: Sequence[str], *, final: Sequence[str], needed: int = 2) -> bool:
    """Whether measuring may stop early: the last ``needed`` verdicts are the same and final.

    Asking for two in a row keeps one lucky look at the samples from deciding.
    """
    last = kinds[-needed:]
    return len(last) == needed and len(set(last)) == 1 and last[0] in final
