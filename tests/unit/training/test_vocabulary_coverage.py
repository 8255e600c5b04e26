"""A map changes for a gain that held-out requests show, and not again for what is no gain."""

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
    """Requests with 99 answer tokens each that a draft could guess."""
    return [e for seed in seeds for e in examples_of(tiny.trace(seed, answer=100, least=least), tiny.VOCAB)]


def mirrored(examples: list[Example]) -> list[Example]:
    """The same with the ids from the other end: 0 to 249 for :data:`LATE` ones, of which their map lacks 100."""
    return [dataclasses.replace(e, tokens=tiny.VOCAB - 1 - e.tokens) for e in examples]


def counts(**by_token: int) -> torch.Tensor:
    found = torch.zeros(20, dtype=torch.int64)
    for token, count in by_token.items():
        found[int(token[1:])] = count
    return found


SMALL = VocabularyMap.of(torch.arange(10), 20)


def test_a_gain_must_be_seen_on_held_out_requests() -> None:
    trained = counts(t0=500, t12=300)
    change = worthwhile_change(SMALL, trained, counts(t0=600, t12=400), [])
    assert change is not None
    assert (change.before, change.after, change.replaced) == (0.6, 1.0, 1)
    assert str(change) == "vocabulary map changed: covers 1.00 of answers, was 0.60; 1 tokens replaced"
    assert worthwhile_change(SMALL, trained, counts(t0=600, t13=400), []) is None, "what is missed was never trained on"
    assert worthwhile_change(SMALL, trained, counts(t0=600, t9=400), []) is None, "held-out answers need what would go"
    assert worthwhile_change(SMALL, trained, counts(), []) is None


@pytest.mark.parametrize(
    ("held_out", "changes"),
    [
        (counts(t0=970, t12=30), True),
        (counts(t0=985, t12=15), False),  # enough is covered
        (counts(t0=950, t12=9, t13=41), False),  # a gain of less than 0.01
        (counts(t0=95, t12=5), False),  # 0.05, by five tokens
        (counts(t0=88, t12=12), True),
        (counts(t0=800, t9=40, t12=70, t13=90), False),  # 70 for and 40 against: 30 is less than three times 10.5
        (counts(t0=800, t9=30, t12=80, t13=90), True),
    ],
)
def test_a_gain_must_be_large_and_beyond_chance(held_out: torch.Tensor, changes: bool) -> None:
    trained = counts(t12=100, **{f"t{i}": 200 for i in range(9)})  # so that 9 gives way to 12
    assert (worthwhile_change(SMALL, trained, held_out, []) is not None) == changes


def test_a_change_waits_for_enough_answers_and_the_next_one_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_TOKENS_BEFORE_CHANGE", 1500)
    monkeypatch.setattr(module, "TOKENS_BETWEEN_CHANGES", 3000)
    tally, held_out = VocabularyCoverage(tiny.VOCAB, (399,)), answers(range(100, 110), LATE)
    tally.add(answers(range(10), LATE))
    assert tally.review(FIRST, held_out) is None, "990 are too few"
    tally.add(answers(range(10, 20), LATE))
    change = tally.review(FIRST, held_out)
    assert change is not None
    assert change.before < 0.65
    assert change.after > 0.98  # 1980 answer tokens do not name all of 250
    assert 399 in change.ids
    # Traffic turns at once; the map must not.
    now, held_out = VocabularyMap.of(change.ids, tiny.VOCAB), mirrored(held_out)
    for start in (200, 210, 220):
        tally.add(mirrored(answers(range(start, start + 10), LATE)))
        assert tally.review(now, held_out) is None, "2970 are too few"
    tally.add(mirrored(answers(range(230, 240), LATE)))
    again = tally.review(now, held_out)
    assert again is not None
    assert again.before < 0.7
    assert again.after > 0.97  # 1980 answer tokens of the former traffic still count


def test_nothing_is_looked_at_again_until_something_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_TOKENS_BEFORE_CHANGE", 0)
    tally, held_out = VocabularyCoverage(tiny.VOCAB, ()), answers(range(100, 110), LATE)
    assert tally.review(FIRST, held_out) is None
    tally.add(answers(range(3)))
    assert tally.review(FIRST, []) is None
    assert tally.review(FIRST, held_out) is None
    tally.add(answers(range(10, 30), LATE))
    assert tally.review(FIRST, held_out) is not None


def test_traffic_of_long_ago_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNT_WINDOW_TOKENS", 2000)
    monkeypatch.setattr(module, "MIN_TOKENS_BEFORE_CHANGE", 0)
    tally = VocabularyCoverage(tiny.VOCAB, ())
    for start in range(0, 200, 10):
        tally.add(answers(range(start, start + 10)))
    for start in range(200, 300, 10):
        tally.add(answers(range(start, start + 10), LATE))
    assert float(tally.state()["coverage.counts"].sum()) <= 2000
    change = tally.review(FIRST, answers(range(400, 410), LATE))
    assert change is not None
    assert change.after > 0.99


def test_a_tally_goes_on_where_it_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_TOKENS_BEFORE_CHANGE", 1500)
    first, second = VocabularyCoverage(tiny.VOCAB, ()), VocabularyCoverage(tiny.VOCAB, ())
    first.add(answers(range(10), LATE))
    second.restore(first.state())
    for tally in (first, second):
        tally.add(answers(range(10, 20), LATE))
    found = [tally.review(FIRST, answers(range(100, 110), LATE)) for tally in (first, second)]
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0].ids, found[1].ids)
    assert all(torch.equal(a, b) for a, b in zip(first.state().values(), second.state().values(), strict=True))
