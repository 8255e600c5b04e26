"""Comparing two sums of counters: when a side is worse, and when chance explains the difference."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.plan.rollout.analysis import Outcome, compare, has_enough_requests
from aurora_operator.plan.rollout.world import AnalysisPolicy
from aurora_protocol.agent_api import LiveCounters
from tests.unit.operator.counters import STEPS, counters


def outcome(new: LiveCounters, old: LiveCounters) -> Outcome:
    return compare(new, old, AnalysisPolicy(), STEPS).outcome


def test_a_loss_within_chance_is_undecided_and_more_traffic_decides() -> None:
    old = counters(100_000, 2.0)
    assert outcome(counters(100, 1.6), old) is Outcome.UNDECIDED
    assert outcome(counters(10_000, 1.6), old) is Outcome.BAD
    assert outcome(counters(100, 1.85), old) is Outcome.GOOD, "within what the policy lets go"


def test_fifty_requests_suffice_to_reject_a_useless_draft() -> None:
    assert [has_enough_requests(counters(count, 2.0), AnalysisPolicy()) for count in (49, 50)] == [False, True]
    assert outcome(counters(50, 1.05), counters(50, 2.5)) is Outcome.BAD


@given(requests=st.integers(50, 5000), length=st.floats(1.0, 4.0), more=st.floats(0.0, 1.0))
def test_a_draft_that_is_as_good_or_better_is_never_bad(requests: int, length: float, more: float) -> None:
    better = min(STEPS + 1.0, length + more)
    assert outcome(counters(requests, better), counters(requests, length)) is not Outcome.BAD


@pytest.mark.parametrize("spread", [0.2, 0.5, 0.9])
def test_chance_alone_rejects_no_draft(spread: float) -> None:
    """The same draft on both sides, in 400 services of 20 windows. Acceptance differs between requests."""
    rng = random.Random(0)  # noqa: S311 - a simulation

    def side(requests: int) -> LiveCounters:
        lengths = [min(STEPS + 1.0, max(1.0, rng.gauss(2.2, spread))) for _ in range(requests)]
        return counters(requests, sum(lengths) / requests)

    bad = 0
    for _ in range(400):
        baseline = side(50)
        bad += sum(outcome(side(50), baseline) is Outcome.BAD for _ in range(20)) > AnalysisPolicy().failure_limit
    assert bad <= 1
