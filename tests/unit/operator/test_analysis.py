"""Live judgement: what it takes for a verdict, and what must not be one."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.agent import LiveCounters
from aurora_api.speculator import Analysis
from aurora_api.status import AnalysisStatus
from aurora_operator.plan.analysis import Live, Outcome, compare, judge, measure_baseline

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Analysis(interval_seconds=10, min_rounds=100)
STEPS = 3


def counters(rounds: int, length: float, **more: int) -> LiveCounters:
    return LiveCounters(verify_rounds=rounds, answer_tokens=round(rounds * length), **more)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def outcome(new: LiveCounters, old: LiveCounters, *, beside: bool = True) -> Outcome:
    return compare(new, old, Analysis(), STEPS, beside=beside)[0]


def test_a_loss_within_chance_is_undecided_and_more_traffic_decides() -> None:
    old = counters(100_000, 2.0)
    assert outcome(counters(200, 1.75), old) is Outcome.WAITING
    assert outcome(counters(20_000, 1.75), old) is Outcome.BAD
    assert outcome(counters(200, 1.85), old) is Outcome.GOOD, "within what the policy lets go"


@given(rounds=st.integers(50, 5000), length=st.floats(1.0, 4.0), more=st.floats(0.0, 1.0))
def test_what_is_as_good_or_better_is_never_bad(rounds: int, length: float, more: float) -> None:
    better = min(STEPS + 1.0, length + more)
    assert outcome(counters(rounds, better), counters(rounds, length)) is not Outcome.BAD


def test_chance_alone_takes_hardly_any_draft_back() -> None:
    """Rounds drawn from one distribution for both sides, 2,000 times; with the default policy."""
    rng = random.Random(0)  # noqa: S311 - a simulation

    def side() -> LiveCounters:
        accepted = sum(next((i for i in range(STEPS) if rng.random() > 0.6), STEPS) for _ in range(200))
        return LiveCounters(verify_rounds=200, answer_tokens=200 + accepted)

    verdicts = [outcome(side(), side()) for _ in range(2000)]
    assert verdicts.count(Outcome.BAD) <= 2
    assert verdicts.count(Outcome.GOOD) > 1700


def test_slower_tokens_and_aborted_requests_are_bad_too() -> None:
    old = counters(1000, 2.0, gaps=2000, gap_milliseconds=40_000, requests=100)
    assert outcome(counters(1000, 2.0, gaps=2000, gap_milliseconds=50_000, requests=100), old) is Outcome.GOOD
    slow = counters(1000, 2.0, gaps=2000, gap_milliseconds=70_000, requests=100)
    assert outcome(slow, old) is Outcome.BAD
    assert outcome(slow, old, beside=False) is Outcome.GOOD, "the load of another time says nothing about the draft"
    assert outcome(counters(1000, 2.0, requests=100, aborted=1), old) is Outcome.GOOD, "one client went away"
    assert outcome(counters(1000, 2.0, requests=80, aborted=20), old) is Outcome.BAD


def window(*, baseline: LiveCounters | None = None) -> AnalysisStatus:
    return AnalysisStatus(since=NOW, baseline=baseline)


def judged(
    state: AnalysisStatus, seconds: float, mine: Live, peer: Live | None = None
) -> tuple[AnalysisStatus, Outcome]:
    peers = {} if peer is None else {"peer": peer}
    return judge(state, {"canary": mine}, peers, POLICY, steps=STEPS, now=at(seconds))


@pytest.mark.parametrize(("with_peer", "expected"), [(True, Outcome.GOOD), (False, Outcome.BAD)])
def test_traffic_that_shifts_for_all_is_not_held_against_the_canary(with_peer: bool, expected: Outcome) -> None:
    state = window(baseline=counters(1000, 2.5))
    zero = Live("b", LiveCounters())
    state, _ = judged(state, 0, zero, zero if with_peer else None)
    shifted = Live("b", counters(500, 1.3))
    state, found = judged(state, 20, shifted, shifted if with_peer else None)
    assert found is expected
    assert (state.successes, state.failures) == ((1, 0) if with_peer else (0, 1))


def test_an_engine_that_restarts_starts_its_window_anew() -> None:
    state = window(baseline=counters(1000, 2.0))
    state, _ = judged(state, 0, Live("first", counters(900, 2.0)))
    state, found = judged(state, 20, Live("second", counters(50, 1.0)))
    assert found is Outcome.WAITING, "counters of another boot say nothing"
    _, found = judged(state, 40, Live("second", counters(250, 3.0)))
    assert found is Outcome.GOOD


def test_the_first_window_begins_when_requests_of_the_former_draft_have_ended() -> None:
    state = AnalysisStatus(baseline=counters(1000, 2.0))
    state, _ = judged(state, 0, Live("b", LiveCounters()))
    state, found = judged(state, 9, Live("b", counters(500, 1.0)))
    assert (found, state.pods) == (Outcome.WAITING, [])
    state, _ = judged(state, 10, Live("b", counters(500, 1.0)))
    _, found = judged(state, 20, Live("b", LiveCounters(verify_rounds=900, answer_tokens=500 + 800)))
    assert found is Outcome.GOOD


def test_a_baseline_takes_an_interval_and_enough_rounds() -> None:
    def seen(state: AnalysisStatus, seconds: float, rounds: int) -> AnalysisStatus:
        return measure_baseline(state, {"a": Live("b", counters(rounds, 2.0))}, POLICY, at(seconds))

    state = seen(AnalysisStatus(), 0, 1000)
    assert seen(state, 5, 5000).baseline is None
    assert seen(state, 50, 1099).baseline is None
    ready = seen(state, 50, 1200)
    assert ready.baseline == counters(200, 2.0)
    assert (ready.since, ready.pods) == (None, [])
