"""Greedy answers compared with those without speculation (promise 2).

Identical, or the first difference is a near tie: two tokens whose logits, re-scored by the server without speculation
on the common prefix, lie within :data:`NEAR_TIE`. bf16 logits of this size step by 0.06 to 0.125, so equality across
batch shapes is not to be had there (notes: sglang.md, section 16); in fp32 answers are identical.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aurora_api.records import Arm, Equality

NEAR_TIE = 0.25

Margin = Callable[[Sequence[int], int, int], Awaitable[float]]
"""``margin(prefix, one, other)``: the gap between the log-probabilities of two tokens after ``prefix``."""


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which the answers part; None when they are equal. It may lie at the end of the shorter one."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


@dataclass
class EqualityCount:
    """Running comparison of one arm. A prompt counts once: its first answers decide."""

    arm: Arm
    identical: int = 0
    near_ties: int = 0
    different: int = 0
    largest_margin: float = 0.0
    _seen: set[int] = field(default_factory=set)

    async def compare(
        self, request: int, prompt: Sequence[int], off: Sequence[int], answer: Sequence[int], margin: Margin
    ) -> None:
        """Compare one answer with the one without speculation."""
        if request in self._seen:
            return
        self._seen.add(request)
        at = first_difference(off, answer)
        if at is None:
            self.identical += 1
            return
        if at >= min(len(off), len(answer)):  # one is the other's beginning: neither token to weigh, nor a tie
            self.different += 1
            return
        gap = await margin([*prompt, *off[:at]], off[at], answer[at])
        self.largest_margin = max(self.largest_margin, gap)
        if gap < NEAR_TIE:
            self.near_ties += 1
        else:
            self.different += 1

    def record(self) -> Equality:
        return Equality(
            arm=self.arm,
            prompts=self.identical + self.near_ties + self.different,
            identical=self.identical,
            near_ties=self.near_ties,
            different=self.different,
            largest_margin=self.largest_margin,
        )
