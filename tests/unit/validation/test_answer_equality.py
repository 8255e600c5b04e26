"""Which first differences of greedy answers are near ties, for each number format of the engine."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.target import DType
from aurora_runtime.validation.rounds import EqualityCounter, near_tie_bound

ANSWER, OTHER = (5, 6, 7), (5, 9, 7)


@pytest.mark.parametrize(
    ("dtype", "gap", "different"),
    [
        (DType.FLOAT32, 1e-4, 0),
        (DType.FLOAT32, 0.125, 1),
        (DType.BFLOAT16, 0.125, 0),
        (DType.BFLOAT16, 0.625, 1),
    ],
    ids=["float32 rounding", "float32 has no near ties", "one step of bfloat16", "beyond a near tie"],
)
async def test_float32_answers_are_identical_and_bfloat16_answers_differ_only_at_near_ties(
    dtype: DType, gap: float, different: int
) -> None:
    async def margin(prefix: object, one: int, other: int) -> float:
        return gap

    counter = EqualityCounter(near_tie_bound(dtype))
    await counter.compare(0, (1, 2), ANSWER, OTHER, margin)
    found = counter.record()
    assert (found.identical, found.near_ties, found.different) == (0, 1 - different, different)
