"""Two answers count as the same when they are identical or diverge at a near tie."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from aurora_api.v1alpha1.target import DType
from tests.assets.target_scores import Margin, margin_of
from tests.bench.equality import Verdict, compare

PROMPT, OFF = [7, 8], [1, 2, 3]


def verdict_of(answer: Sequence[int], margin: Margin, dtype: DType = DType.BFLOAT16) -> Verdict:
    def check_and_return_margin(prefix: Sequence[int], one: int, other: int) -> Margin:
        assert [*prefix] == [*PROMPT, 1]
        assert (one, other) == (2, 9)
        return margin

    return compare(PROMPT, OFF, answer, dtype, check_and_return_margin).verdict


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (Margin(lead=0.25, gap=0.25), Verdict.NEAR_TIE),
        (Margin(lead=-0.25, gap=0.25), Verdict.NEAR_TIE),
        (Margin(lead=-0.26, gap=0.26), Verdict.DIFFERENT),
        (Margin(lead=0.01, gap=0.2), Verdict.NEAR_TIE),
        (Margin(lead=0.01, gap=3.0), Verdict.DIFFERENT),
    ],
)
def test_a_near_tie_needs_two_tokens_near_the_best(margin: Margin, expected: Verdict) -> None:
    assert verdict_of([1, 9, 3], margin) is expected


def test_there_are_no_near_ties_in_fp32() -> None:
    assert verdict_of([1, 9, 3], Margin(0.0, 0.0), DType.FLOAT32) is Verdict.DIFFERENT


def test_a_shorter_answer_is_different() -> None:
    assert verdict_of([1, 2], Margin(0.0, 0.0)) is Verdict.DIFFERENT
    assert verdict_of(OFF, Margin(9.0, 9.0)) is Verdict.IDENTICAL


def test_the_gap_of_a_margin_is_measured_from_the_best_of_all_tokens() -> None:
    logits = torch.tensor([1.0, 3.0, 2.5, 2.5])
    assert margin_of(logits, 1, 0) == Margin(lead=2.0, gap=2.0)
    assert margin_of(logits, 2, 1) == Margin(lead=-0.5, gap=0.5)
    assert margin_of(logits, 2, 3) == Margin(lead=0.0, gap=0.5)
    assert margin_of(logits, 0, 2) == Margin(lead=-1.5, gap=2.0)
