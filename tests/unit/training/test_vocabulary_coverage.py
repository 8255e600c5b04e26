"""A map changes only for a gain that held-out requests show."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aurora_runtime.training import vocabulary_coverage as module
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.vocabulary_coverage import VocabularyCoverage, worthwhile_change
from tests.unit.training import tiny

FIRST = VocabularyMap.of(torch.arange(tiny.DRAFT_VOCAB), tiny.VOCAB)
LATE = 150  # tokens from here on: 250 of them, of which the first ids hold 150


def answers(seeds: range, least: int = 0) -> list[Example]:
    """Requests with 99 answer tokens each that a draft could propose."""
    return [e for seed in seeds for e in examples_of(tiny.trace(seed, answer=100, least=least), tiny.VOCAB)]


def mirrored(examples: list[Example]) -> list[Example]:
    """The same with ids counted from the other end: :data:`LATE` ids become 0 to 249, of which their map lacks 100."""
    return [dataclasses.replace(e, tokens=tiny.VOCAB - 1 - e.tokens) for e in examples]


def counts(**by_token: int) -> torch.Tensor:
    found = torch.zeros(20, dtype=torch.int64)
    for token, count in by_token.items():
        found[int(token[1:])] = count
    return found


SMALL = VocabularyMap.of(torch.arange(10), 20)


def test_a_change_must_gain_on_held_out_requests() -> None:
    trained = counts(t0=500, t12=300)
    change = worthwhile_change(SMALL, trained, counts(t0=600, t12=400), [])
    assert change is not None
    assert (change.before, change.after, change.replaced) == (0.6, 1.0, 1)
    assert worthwhile_change(SMALL, trained, counts(t0=600, t13=400), []) is None, (
        "the missing token was never trained on"
    )
    assert worthwhile_change(SMALL, trained, counts(t0=600, t9=400), []) is None, (
        "held-out answers need the token that would be removed"
    )
    assert worthwhile_change(SMALL, trained, counts(), []) is None


@pytest.mark.parametrize(
    ("held_out", "changes"),
    [
        (counts(t0=970, t12=30), True),
        (counts(t0=985, t12=15), False),  # the coverage is high enough
        (counts(t0=950, t12=9, t13=41), False),  # a gain of less than 0.01
        (counts(t0=95, t12=5), False),  # a gain of 0.05, but by only five tokens
        (counts(t0=88, t12=12), True),
        (
            counts(t0=800, t9=40, t12=70, t13=90),
            False,
        ),  # 70 - 40 is less than 3 standard errors of 10.5
        (counts(t0=800, t9=30, t12=80, t13=90), True),
    ],
)
def test_a_gain_must_be_large_and_certain(held_out: torch.Tensor, changes: bool) -> None:
    trained = counts(t12=100, **{f"t{i}": 200 for i in range(9)})  # so that 12 replaces 9
    assert (worthwhile_change(SMALL, trained, held_out, []) is not None) == changes


def test_a_change_waits_for_enough_answers_and_the_next_change_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_TOKENS_BEFORE_CHANGE", 1500)
    monkeypatch.setattr(module, "TOKENS_BETWEEN_CHANGES", 3000)
    coverage, held_out = VocabularyCoverage(tiny.VOCAB, (399,)), answers(range(100, 110), LATE)
    coverage.add(answers(range(10), LATE))
    assert coverage.review(FIRST, held_out) is None, "990 are too few"
    coverage.add(answers(range(10, 20), LATE))
    change = coverage.review(FIRST, held_out)
    assert change is not None
    assert change.before < 0.65
    assert change.after > 0.98  # 1980 answer tokens do not name all of 250
    assert 399 in change.ids
    # The map must not change as soon as the traffic does.
    now, held_out = VocabularyMap.of(change.ids, tiny.VOCAB), mirrored(held_out)
    for start in (200, 210, 220):
        coverage.add(mirrored(answers(range(start, start + 10), LATE)))
        assert coverage.review(now, held_out) is None, "2970 are too few"
    coverage.add(mirrored(answers(range(230, 240), LATE)))
    again = coverage.review(now, held_out)
    assert again is not None
    assert again.before < 0.7
    assert again.after > 0.97  # 1980 answer tokens of the former traffic still count


def test_a_review_is_skipped_until_more_tokens_were_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_TOKENS_BEFORE_CHANGE", 0)
    coverage, held_out = VocabularyCoverage(tiny.VOCAB, ()), answers(range(100, 110), LATE)
    assert coverage.review(FIRST, held_out) is None
    coverage.add(answers(range(3)))
    assert coverage.review(FIRST, []) is None
    assert coverage.review(FIRST, held_out) is None
    coverage.add(answers(range(10, 30), LATE))
    assert coverage.review(FIRST, held_out) is not None


def test_counts_of_old_traffic_lose_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNT_WINDOW_TOKENS", 2000)
    monkeypatch.setattr(module, "MIN_TOKENS_BEFORE_CHANGE", 0)
    coverage = VocabularyCoverage(tiny.VOCAB, ())
    for start in range(0, 200, 10):
        coverage.add(answers(range(start, start + 10)))
    for start in range(200, 300, 10):
        coverage.add(answers(range(start, start + 10), LATE))
    assert float(coverage.state()["coverage.counts"].sum()) <= 2000
    change = coverage.review(FIRST, answers(range(400, 410), LATE))
    assert change is not None
    assert change.after > 0.99
