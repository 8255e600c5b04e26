"""What some pods did against what others did: what it takes to be worse, and what chance and the past excuse."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.agent import LiveCounters
from aurora_api.speculator import Analysis
from aurora_operator.plan.comparison import Outcome, Past, compare
from tests.unit.operator.counters import STEPS, counters, paced


def outcome(new: LiveCounters, old: LiveCounters, past: Past | None = None, *, beside: bool = True) -> Outcome:
    return compare(new, old, Analysis(), STEPS, beside=beside, past=past)[0]


def test_a_loss_within_chance_is_undecided_and_more_traffic_decides() -> None:
    old = counters(100_000, 2.0)
    assert outcome(counters(100, 1.6), old) is Outcome.WAITING
    assert outcome(counters(10_000, 1.6), old) is Outcome.BAD
    assert outcome(counters(100, 1.85), old) is Outcome.GOOD, "within what the policy lets go"


def test_a_useless_draft_is_known_after_fifty_requests() -> None:
    assert outcome(counters(50, 1.05), counters(50, 2.5)) is Outcome.BAD


@given(requests=st.integers(50, 5000), length=st.floats(1.0, 4.0), more=st.floats(0.0, 1.0))
def test_what_is_as_good_or_better_is_never_bad(requests: int, length: float, more: float) -> None:
    better = min(STEPS + 1.0, length + more)
    assert outcome(counters(requests, better), counters(requests, length)) is not Outcome.BAD


@pytest.mark.parametrize("spread", [0.2, 0.5, 0.9])
def test_chance_alone_takes_no_draft_back(spread: float) -> None:
    """The same draft on both sides, 400 services of 20 windows; requests differ in what can be drafted for them."""
    rng = random.Random(0)  # noqa: S311 - a simulation

    def side(requests: int) -> LiveCounters:
        lengths = [min(STEPS + 1.0, max(1.0, rng.gauss(2.2, spread))) for _ in range(requests)]
        return counters(requests, sum(lengths) / requests)

    bad = 0
    for _ in range(400):
        baseline = side(50)
        bad += sum(outcome(side(50), baseline) is Outcome.BAD for _ in range(20)) > Analysis().failure_limit
    assert bad <= 1


def test_slower_tokens_are_known_beside_peers_only() -> None:
    old = paced(*[20.0] * 100)
    assert outcome(paced(*[25.0] * 100), old) is Outcome.GOOD
    slow = paced(*[35.0] * 100)
    assert outcome(slow, old) is Outcome.SLOW
    assert outcome(slow, old, beside=False) is Outcome.GOOD, "the load of another time says nothing about the draft"
    unbounded = slow.model_copy(update={"gap_squares": 0})
    assert outcome(unbounded, old) is Outcome.GOOD, "an agent that does not bound chance is not asked"


def test_slower_tokens_within_chance_are_undecided_and_more_requests_decide() -> None:
    assert outcome(paced(*[20.0] * 46, *[200.0] * 4), paced(*[20.0] * 50)) is Outcome.WAITING
    assert outcome(paced(*[20.0] * 4600, *[200.0] * 400), paced(*[20.0] * 5000)) is Outcome.SLOW


def test_clients_that_give_up_are_bad_when_they_are_many_more() -> None:
    old = counters(100, 2.0)
    assert outcome(counters(100, 2.0, aborted=3), old) is Outcome.GOOD, "some clients always go away"
    assert outcome(counters(100, 2.0, aborted=40), old) is Outcome.BAD
    assert outcome(counters(100, 2.0, aborted=40), counters(100, 2.0, aborted=35)) is Outcome.GOOD


def test_pods_that_accepted_less_before_are_held_to_that() -> None:
    past, peers = Past(counters(5000, 1.5), counters(5000, 2.0)), counters(10_000, 2.4)
    assert outcome(counters(10_000, 1.8), peers) is Outcome.BAD
    assert outcome(counters(10_000, 1.8), peers, past) is Outcome.GOOD
    assert outcome(counters(10_000, 1.3), peers, past) is Outcome.BAD


def test_pods_that_were_slower_before_are_held_to_that() -> None:
    past, peers = Past(paced(*[40.0] * 100), paced(*[20.0] * 100)), paced(*[20.0] * 100)
    assert outcome(paced(*[40.0] * 100), peers) is Outcome.SLOW
    assert outcome(paced(*[40.0] * 100), peers, past) is Outcome.GOOD
    assert outcome(paced(*[80.0] * 100), peers, past) is Outcome.SLOW


def test_pods_whose_clients_gave_up_before_are_held_to_that() -> None:
    past = Past(counters(1000, 2.0, aborted=400), counters(1000, 2.0))
    assert outcome(counters(1000, 2.0, aborted=400), counters(1000, 2.0)) is Outcome.BAD
    assert outcome(counters(1000, 2.0, aborted=400), counters(1000, 2.0), past) is Outcome.GOOD
    assert outcome(counters(1000, 2.0, aborted=900), counters(1000, 2.0), past) is Outcome.BAD


def test_a_past_of_few_requests_says_nothing() -> None:
    past = Past(counters(49, 1.0), counters(5000, 4.0))
    assert outcome(counters(10_000, 1.0), counters(10_000, 2.0), past) is Outcome.BAD


SEVERITY = [Outcome.GOOD, Outcome.WAITING, Outcome.SLOW, Outcome.BAD]


@st.composite
def sides(draw: st.DrawFn) -> LiveCounters:
    requests = draw(st.integers(50, 2000))
    pace = paced(*[draw(st.floats(5.0, 200.0))] * 60)
    gaps = {name: getattr(pace, name) for name in ("gaps", "gap_milliseconds", "gap_squares")}
    return counters(requests, draw(st.floats(1.0, 4.0)), aborted=draw(st.integers(0, requests)), **gaps)


@given(new=sides(), old=sides(), ours=sides(), theirs=sides())
def test_a_past_makes_no_bar_stricter(
    new: LiveCounters, old: LiveCounters, ours: LiveCounters, theirs: LiveCounters
) -> None:
    without, with_past = outcome(new, old), outcome(new, old, Past(ours, theirs))
    assert SEVERITY.index(with_past) <= SEVERITY.index(without)


@given(new=sides(), old=sides(), same=sides())
def test_a_past_in_which_both_did_the_same_changes_nothing(
    new: LiveCounters, old: LiveCounters, same: LiveCounters
) -> None:
    assert outcome(new, old, Past(same, same)) is outcome(new, old)
