"""What counts as the same answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from aurora_api.speculator import DType
from tests.assets.exact_scores import Margin, margin_of
from tests.bench.equality import Verdict, judge

PROMPT, OFF = [7, 8], [1, 2, 3]


def verdict(answer: Sequence[int], margin: Margin, dtype: DType = DType.BFLOAT16) -> Verdict:
    def weigh(prefix: Sequence[int], one: int, other: int) -> Margin:
        assert [*prefix] == [*PROMPT, 1]
        assert (one, other) == (2, 9)
        return margin

    return judge(PROMPT, OFF, answer, dtype, weigh).verdict


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (Margin(0.25, top_two=True), Verdict.NEAR_TIE),
        (Margin(-0.25, top_two=True), Verdict.NEAR_TIE),
        (Margin(-0.26, top_two=True), Verdict.DIFFERENT),
        (Margin(0.01, top_two=False), Verdict.DIFFERENT),
    ],
)
def test_a_near_tie_is_between_the_two_best_and_within_the_bound(margin: Margin, expected: Verdict) -> None:
    assert verdict([1, 9, 3], margin) is expected


def test_fp32_knows_no_near_tie() -> None:
    assert verdict([1, 9, 3], Margin(0.0, top_two=True), DType.FLOAT32) is Verdict.DIFFERENT


def test_an_answer_cut_short_is_different() -> None:
    assert verdict([1, 2], Margin(0.0, top_two=True)) is Verdict.DIFFERENT
    assert verdict(OFF, Margin(9.0, top_two=False)) is Verdict.IDENTICAL


def test_the_two_best_may_come_in_either_order_and_share_their_score() -> None:
    logits = torch.tensor([1.0, 3.0, 2.5, 2.5])
    assert margin_of(logits, 1, 0) == Margin(2.0, top_two=False)
    assert margin_of(logits, 2, 1) == Margin(-0.5, top_two=True)
    assert margin_of(logits, 1, 2) == Margin(0.5, top_two=True)
    assert margin_of(logits, 2, 3) == Margin(0.0, top_two=True)
