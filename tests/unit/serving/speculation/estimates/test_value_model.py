from __future__ import annotations

import pytest

from aurora_runtime.engine.arms import Source
from aurora_runtime.serving.speculation.estimates.value_model import (
    AGING_ROUNDS,
    MAX_REQUESTS,
    MAX_VERSIONS,
    ValueModel,
)
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, RequestOutlook


def outlook(rid: str, match: int = 0, length: int = 7, pending: int = 0) -> RequestOutlook:
    return RequestOutlook(rid, match, length if match else 0, pending)


def teach(model: ValueModel, source: Source, request: RequestOutlook, accepted: int, rounds: int = 30) -> None:
    for _ in range(rounds):
        model.begin_round()
        model.learn(source, [(request, accepted, 7)])


def test_long_matches_are_learned_apart_from_short_ones() -> None:
    model = ValueModel(7)
    for i in range(30):
        teach(model, Source.LOOKUP, outlook(f"long {i}", match=20), 7, rounds=1)
        teach(model, Source.LOOKUP, outlook(f"short {i}", match=2), 0, rounds=1)
    assert model.lookup_curve(outlook("new", match=20))[7] > 5
    assert model.lookup_curve(outlook("new", match=2))[7] < 0.5


def test_lookup_promises_no_more_tokens_than_it_has() -> None:
    model = ValueModel(7)
    teach(model, Source.LOOKUP, outlook("a", match=20), 7)
    curve = model.lookup_curve(outlook("a", match=20, length=3))
    assert curve[3] == curve[7] <= 3


def test_a_request_that_the_draft_cannot_serve_is_promised_nothing() -> None:
    model = ValueModel(7)
    teach(model, Source.DRAFT, outlook("a"), 7)
    assert model.draft_curve(outlook("a", pending=CANNOT_DRAFT))[7] == 0


def test_a_request_that_the_draft_guesses_badly_lowers_its_own_estimate_at_once() -> None:
    model = ValueModel(7)
    for i in range(40):
        teach(model, Source.DRAFT, outlook(f"good {i}"), 6, rounds=1)
    teach(model, Source.DRAFT, outlook("bad"), 0, rounds=3)
    assert model.draft_curve(outlook("bad"))[7] < 0.7 * model.draft_curve(outlook("other"))[7]


@pytest.mark.parametrize("source", [Source.DRAFT, Source.LOOKUP])
def test_a_source_that_nobody_tries_any_more_becomes_uncertain_again(source: Source) -> None:
    model = ValueModel(7)
    for i in range(40):
        teach(model, source, outlook(f"bad {i}", match=8), 0, rounds=1)
    curve = model.draft_curve if source is Source.DRAFT else model.lookup_curve
    certain = curve(outlook("new", match=8), 1.5)[7]
    for _ in range(1000):
        model.begin_round()
    assert curve(outlook("new", match=8), 1.5)[7] > 2 * certain


def test_a_good_draft_that_is_seldom_used_does_not_seem_bad() -> None:
    model = ValueModel(7)
    for i in range(80):
        teach(model, Source.DRAFT, outlook(f"good {i}"), 4, rounds=1)
    before = model.draft_curve(outlook("new"))[4]
    for i in range(10):
        for _ in range(100):
            model.begin_round()
        teach(model, Source.DRAFT, outlook(f"seldom {i}"), 4, rounds=1)
    assert model.draft_curve(outlook("new"))[4] > 0.95 * before


def test_the_low_odds_of_requests_that_ended_long_ago_are_forgotten() -> None:
    model = ValueModel(7)
    for i in range(4):
        teach(model, Source.DRAFT, outlook(f"bad {i}"), 0, rounds=4)
        model.request_ended(f"bad {i}")
    teach(model, Source.DRAFT, outlook("good"), 6, rounds=20)
    recent = model.draft_curve(outlook("new"))[7]
    teach(model, Source.DRAFT, outlook("good"), 6, rounds=600)
    assert model.draft_curve(outlook("new"))[7] > 1.2 * recent


@pytest.mark.parametrize("requests", [1, 16, 64, 256])
def test_evidence_of_at_least_a_few_rounds_counts_however_many_requests_propose_at_once(requests: int) -> None:
    model = ValueModel(7)
    for _ in range(400):
        model.begin_round()
        model.learn(Source.DRAFT, [(outlook(f"r{i}"), 1, 7) for i in range(requests)])
    rounds = model.draft_trials(0) / requests
    assert 18 < rounds < 100


def test_a_large_batch_shows_within_some_rounds_that_the_draft_became_worse() -> None:
    model, batch = ValueModel(7), [outlook(f"r{i}") for i in range(64)]
    for accepted, rounds in ((6, 400), (0, 60)):
        for _ in range(rounds):
            model.begin_round()
            model.learn(Source.DRAFT, [(request, accepted, 7) for request in batch])
    assert model.draft_curve(outlook("new"))[7] < 0.3


def test_new_requests_begin_with_the_odds_that_the_last_ones_ended_with() -> None:
    model = ValueModel(7)
    teach(model, Source.DRAFT, outlook("first"), 6)
    hopeful = model.draft_curve(outlook("new"))[7]
    for i in range(4):
        teach(model, Source.DRAFT, outlook(f"bad {i}"), 0, rounds=4)
        model.request_ended(f"bad {i}")
    assert model.draft_curve(outlook("new"))[7] < 0.3 * hopeful


def test_a_replaced_draft_is_unknown_and_lookup_is_not() -> None:
    model = ValueModel(7)
    teach(model, Source.DRAFT, outlook("a"), 7)
    teach(model, Source.LOOKUP, outlook("a", match=8), 7)
    known = model.lookup_curve(outlook("a", match=8))
    model.draft_serves("2")
    assert model.draft_curve(outlook("a"))[7] < 0.2
    assert model.draft_trials(0) == 0
    assert model.lookup_curve(outlook("a", match=8)) == known


def test_each_draft_must_have_a_token_accepted_of_its_own() -> None:
    model = ValueModel(7)
    teach(model, Source.DRAFT, outlook("a"), 0)
    teach(model, Source.LOOKUP, outlook("a", match=20), 7)
    assert not model.draft_has_accepted
    teach(model, Source.DRAFT, outlook("a"), 1, rounds=1)
    assert model.draft_has_accepted
    model.draft_serves("2")
    assert not model.draft_has_accepted
    model.draft_serves("")
    assert model.draft_has_accepted


def test_a_draft_that_serves_again_has_the_rates_that_it_had() -> None:
    """The gate's measurement swaps two drafts in turn, and a rollback brings the former draft back."""
    model = ValueModel(7)
    model.draft_serves("1")
    teach(model, Source.DRAFT, outlook("a"), 7)
    model.request_ended("a")
    trials = model.draft_trials(0)
    model.draft_serves("2")
    teach(model, Source.DRAFT, outlook("b"), 0, rounds=1000)
    model.draft_serves("1")
    assert model.draft_trials(0) == trials
    for _ in range(AGING_ROUNDS):
        model.begin_round()
    assert model.draft_trials(0) > 0.8 * trials
    assert model.draft_curve(outlook("new"))[7] > 4
    for version in range(3, 3 + MAX_VERSIONS):
        model.draft_serves(str(version))
    model.draft_serves("1")
    assert model.draft_trials(0) == 0, "only the last versions are kept"


def test_requests_that_never_end_do_not_pile_up() -> None:
    model = ValueModel(2)
    for i in range(MAX_REQUESTS + 10):
        model.learn(Source.DRAFT, [(outlook(f"r{i}"), 0, 1)])
    assert model.tracked_requests <= MAX_REQUESTS
