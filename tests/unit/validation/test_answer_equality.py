"""Which first differences of greedy answers are ties, by what the engine computes in."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.target import DType
from aurora_protocol.evidence_records import Arm
from aurora_runtime.validation.answer_equality import EqualityCount, near_tie

ANSWER, OTHER = (5, 6, 7), (5, 9, 7)


@pytest.mark.parametrize(
    ("dtype", "gap", "different"),
    [
        (DType.FLOAT32, 1e-4, 0),
        (DType.FLOAT32, 0.125, 1),
        (DType.BFLOAT16, 0.125, 0),
        (DType.BFLOAT16, 0.625, 1),
    ],
    ids=["rounding", "float32 knows no ties", "a step of bfloat16", "more than a tie"],
)
async def test_float32_answers_are_the_same_and_bfloat16_ones_part_at_ties(
    dtype: DType, gap: float, different: int
) -> None:
    async def margin(prefix: object, one: int, other: int) -> float:
        return gap

    count = EqualityCount(Arm.CANDIDATE, near_tie(dtype))
    await count.compare(0, (1, 2), ANSWER, OTHER, margin)
    assert (count.identical, count.near_ties, count.different) == (0, 1 - different, different)
