"""Compares greedy answers with those without speculation (promise 2).

Two answers are equal when they are identical, or when their first difference is a near tie: two tokens whose logits lie
within a bound. The engine computes both logits again on the common prefix. If no engine without speculation runs, the
engine with the draft computes them: the first token of an answer comes from the target's prefill, which uses no draft.

Half-precision logits between 16 and 32 have steps of 0.125 (bf16), so answers cannot be identical across batch shapes.
In fp32 they are identical. The second computation is as coarse as the engine: margins seen on SmolLM2 in bf16 are
multiples of 0.125, hence the slack.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aurora_api.v1alpha1.target import DType
from aurora_protocol.evidence_records import AnswerEquality, Arm

NEAR_TIE_LOGIT_GAP = 0.25
"""Largest gap of two logits that counts as a tie, in exact arithmetic."""
HALF_PRECISION_SLACK = 0.25
"""What computing again in half precision may add to a gap: one step of 0.125 for each of the two logits."""
FLOAT32_LOGIT_GAP = 0.01
"""How far another order of summation may move float32 logits, with a margin. Answers are otherwise identical."""


def near_tie_bound(dtype: DType) -> float:
    """The largest gap of two logits that counts as a tie on an engine that computes in ``dtype``."""
    return FLOAT32_LOGIT_GAP if dtype is DType.FLOAT32 else NEAR_TIE_LOGIT_GAP + HALF_PRECISION_SLACK


Margin = Callable[[Sequence[int], int, int], Awaitable[float]]
"""``margin(prefix, one, other)``: the gap between the log-probabilities of two tokens after ``prefix``."""


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which two answers differ, possibly the shorter one's end. None when they are equal."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


@dataclass
class EqualityCounter:
    """Counts how the answers of one arm compare. A prompt counts once: its first answers decide."""

    arm: Arm
    bound: float
    """Largest gap of two logits that counts as a near tie."""
    identical: int = 0
    near_ties: int = 0
    different: int = 0
    largest_margin: float = 0.0
    _counted_requests: set[int] = field(default_factory=set, init=False)

    async def compare(
        self, request: int, prompt: Sequence[int], expected: Sequence[int], answer: Sequence[int], margin: Margin
    ) -> None:
        """Compare one answer with off's, ``expected``."""
        if request in self._counted_requests:
            return
        self._counted_requests.add(request)
        index = first_difference(expected, answer)
        if index is None:
            self.identical += 1
            return
        if index >= min(len(expected), len(answer)):  # one answer ends earlier, so there are no two tokens to compare
            self.different += 1
            return
        gap = await margin([*prompt, *expected[:index]], expected[index], answer[index])
        self.largest_margin = max(self.largest_margin, gap)
        if gap <= self.bound:
            self.near_ties += 1
        else:
            self.different += 1

    def record(self) -> AnswerEquality:
        """The counts so far."""
        return AnswerEquality(
            arm=self.arm,
            prompts=self.identical + self.near_ties + self.different,
            identical=self.identical,
            near_ties=self.near_ties,
            different=self.different,
            largest_margin=self.largest_margin,
        )
