"""Greedy answers compared with those without speculation, or with those of a draft that answers so (promise 2).

Identical, or the first difference is a near tie: two tokens whose logits, re-scored by the server on the common prefix,
lie within a bound. Where no server without speculation runs, the one with the draft re-scores: a first token comes from
the target's prefill, which no draft touches. Half-precision logits between 16 and 32 step by 0.125 (bf16), so equality
across batch shapes is not to be had there; in fp32 answers are identical. The re-score is as coarse as the engine:
seen on SmolLM2 in bf16, margins are multiples of 0.125, hence the slack.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aurora_api.v1alpha1.target import DType
from aurora_protocol.evidence_records import AnswerEquality, Arm

NEAR_TIE = 0.25
"""Largest gap of two logits that counts as a tie, in exact arithmetic."""
HALF_PRECISION_SLACK = 0.25
"""What re-scoring in half precision may add: one step of 0.125 for each of the two logits."""
ROUNDING = 0.01
"""What sums in another order may move float32 logits by, with room: answers are otherwise the same."""


def near_tie(dtype: DType) -> float:
    """The bound for a server that computes in ``dtype``."""
    return ROUNDING if dtype is DType.FLOAT32 else NEAR_TIE + HALF_PRECISION_SLACK


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
    bound: float
    """Largest gap that counts as a near tie."""
    reference: Arm = Arm.OFF
    identical: int = 0
    near_ties: int = 0
    different: int = 0
    largest_margin: float = 0.0
    _seen: set[int] = field(default_factory=set)

    async def compare(
        self, request: int, prompt: Sequence[int], base: Sequence[int], answer: Sequence[int], margin: Margin
    ) -> None:
        """Compare one answer with the reference's."""
        if request in self._seen:
            return
        self._seen.add(request)
        at = first_difference(base, answer)
        if at is None:
            self.identical += 1
            return
        if at >= min(len(base), len(answer)):  # one is the other's beginning: neither token to weigh, nor a tie
            self.different += 1
            return
        gap = await margin([*prompt, *base[:at]], base[at], answer[at])
        self.largest_margin = max(self.largest_margin, gap)
        if gap <= self.bound:
            self.near_ties += 1
        else:
            self.different += 1

    def record(self) -> AnswerEquality:
        return AnswerEquality(
            arm=self.arm,
            reference=self.reference,
            prompts=self.identical + self.near_ties + self.different,
            identical=self.identical,
            near_ties=self.near_ties,
            different=self.different,
            largest_margin=self.largest_margin,
        )
