"""When training is suspended for its worth, and when it resumes: single decisions, and any sequence of facts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.training import SuspendWhen, SuspensionReason, TrainingWorth
from aurora_operator.plan.worth.policy import (
    CRITERIA_UNSET,
    MIN_TRAINING,
    RESUME_AFTER,
    SUSPEND_AFTER,
    WorthFacts,
    decide,
)
from tests.unit.operator.worlds import NOW

BOTH = SuspendWhen(candidates_without_gain=5, saving_below_cost=True, resume_after_seconds=86400)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
NO_GAIN = WorthFacts(active=3, without_gain=5, acceptance=0.8)
TOO_DEAR = WorthFacts(active=3, cost=86400, saved=40000, comparable=True)


def running(since: datetime = NOW) -> TrainingWorth:
    return TrainingWorth(since=since)


def suspended(facts: WorthFacts, criteria: SuspendWhen = BOTH) -> TrainingWorth:
    """Suspended at NOW."""
    worth = running(NOW - 2 * SUSPEND_AFTER).model_copy(update={"below_cost_since": NOW - SUSPEND_AFTER})
    decided = decide(criteria, worth, facts, NOW)
    assert decided.suspended_for is not None
    return decided


def reason(criteria: SuspendWhen | None, worth: TrainingWorth, facts: WorthFacts, now: datetime) -> str | None:
    return decide(criteria, worth, facts, now).suspended_for


def test_drafts_without_a_gain_suspend_training_after_its_first_hour() -> None:
    first = decide(BOTH, TrainingWorth(), NO_GAIN, NOW)
    assert (first.since, first.suspended_for) == (NOW, None)
    assert reason(BOTH, first, NO_GAIN, NOW + MIN_TRAINING - MINUTE) is None
    assert reason(BOTH, first, replace(NO_GAIN, without_gain=4), NOW + MIN_TRAINING) is None
    assert reason(BOTH, first, replace(NO_GAIN, gain_is_coming=True), NOW + MIN_TRAINING) is None
    decided = decide(BOTH, first, NO_GAIN, NOW + MIN_TRAINING)
    assert decided.suspended_for is SuspensionReason.NO_GAIN
    assert (decided.message, decided.suspended_version) == ("5 drafts in a row brought no gain", 3)
    only_saving = SuspendWhen(saving_below_cost=True)
    assert reason(only_saving, first, NO_GAIN, NOW + MIN_TRAINING) is None


def test_a_saving_below_the_cost_suspends_training_after_a_day() -> None:
    worth = decide(BOTH, running(), TOO_DEAR, NOW)
    assert worth.below_cost_since == NOW
    assert reason(BOTH, worth, TOO_DEAR, NOW + SUSPEND_AFTER - MINUTE) is None
    decided = decide(BOTH, worth, TOO_DEAR, NOW + SUSPEND_AFTER)
    assert decided.suspended_for is SuspensionReason.SAVING_BELOW_COST
    assert "saves about 40000 device-seconds a day, and training costs 86400" in decided.message
    assert reason(SuspendWhen(candidates_without_gain=5), worth, TOO_DEAR, NOW + SUSPEND_AFTER) is None


@pytest.mark.parametrize(
    "unknown", [{"cost": None}, {"saved": None}, {"comparable": False}], ids=["cost", "saving", "kinds differ"]
)
def test_an_unknown_figure_suspends_nothing_and_keeps_the_wait(unknown: dict[str, Any]) -> None:
    worth = decide(BOTH, running(), TOO_DEAR, NOW)
    facts = replace(TOO_DEAR, **unknown)
    later = decide(BOTH, worth, facts, NOW + 2 * SUSPEND_AFTER)
    assert (later.suspended_for, later.below_cost_since) == (None, NOW)
    assert reason(BOTH, running(), facts, NOW + 2 * SUSPEND_AFTER) is None


def test_a_saving_above_the_cost_for_a_moment_begins_the_wait_anew() -> None:
    worth = decide(BOTH, running(), TOO_DEAR, NOW)
    worth = decide(BOTH, worth, replace(TOO_DEAR, saved=86400), NOW + 23 * HOUR)
    worth = decide(BOTH, worth, TOO_DEAR, NOW + 24 * HOUR)
    assert worth.below_cost_since == NOW + 24 * HOUR


@given(st.integers(0, 86400 * 30))
def test_both_waits_begin_anew_after_a_time_without_observations(seconds: int) -> None:
    """Nobody knows what the figures were meanwhile."""
    later = NOW + timedelta(seconds=seconds)
    dear = decide(BOTH, decide(BOTH, running(), TOO_DEAR, NOW), replace(TOO_DEAR, figures_gap=True), later)
    assert (dear.suspended_for, dear.below_cost_since) == (None, later)
    low = replace(NO_GAIN, recent_acceptance=0.5)
    patient = BOTH.model_copy(update={"resume_after_seconds": 86400 * 60})
    fell = decide(patient, suspended(NO_GAIN, patient), low, NOW)
    fell = decide(patient, fell, replace(low, figures_gap=True), later)
    assert (fell.suspended_for, fell.acceptance_fell_since) == (SuspensionReason.NO_GAIN, later)


def test_a_suspension_ends_after_its_longest_time() -> None:
    worth = suspended(NO_GAIN)
    assert reason(BOTH, worth, NO_GAIN, NOW + timedelta(seconds=86399)) is SuspensionReason.NO_GAIN
    resumed = decide(BOTH, worth, NO_GAIN, NOW + timedelta(seconds=86400))
    assert (resumed.suspended_for, resumed.message) == (None, "training was suspended for 86400 s")
    assert (resumed.without_gain, resumed.measured_without_gain) == (0, 0), "it needs new drafts without a gain"


def test_another_active_version_ends_a_suspension() -> None:
    resumed = decide(BOTH, suspended(NO_GAIN), replace(NO_GAIN, active=4), NOW + MINUTE)
    assert (resumed.suspended_for, resumed.message) == (None, "version 4 became active")
    assert reason(BOTH, suspended(NO_GAIN), replace(NO_GAIN, active=None), NOW + MINUTE) is not None


def test_a_saving_clearly_above_the_cost_ends_the_suspension_that_it_caused() -> None:
    dear, worth_it = suspended(TOO_DEAR), replace(TOO_DEAR, saved=108000)
    assert reason(BOTH, dear, replace(TOO_DEAR, saved=107999), NOW + HOUR) is SuspensionReason.SAVING_BELOW_COST
    assert reason(BOTH, dear, worth_it, NOW + HOUR) is None
    no_gain = replace(worth_it, without_gain=5)
    assert reason(BOTH, suspended(no_gain), no_gain, NOW + HOUR) is SuspensionReason.NO_GAIN


def test_traffic_that_moves_away_from_the_draft_resumes_training_after_an_hour() -> None:
    worth = suspended(NO_GAIN)
    assert worth.acceptance == "0.800"
    low, usual = replace(NO_GAIN, recent_acceptance=0.71), replace(NO_GAIN, recent_acceptance=0.73)
    begun = decide(BOTH, worth, low, NOW)
    assert begun.acceptance_fell_since == NOW
    assert decide(BOTH, begun, NO_GAIN, NOW + RESUME_AFTER).acceptance_fell_since == NOW, "no traffic says nothing"
    assert decide(BOTH, begun, usual, NOW + MINUTE).acceptance_fell_since is None
    assert reason(BOTH, begun, low, NOW + RESUME_AFTER - MINUTE) is SuspensionReason.NO_GAIN
    resumed = decide(BOTH, begun, low, NOW + RESUME_AFTER)
    assert resumed.suspended_for is None
    assert "accepts 0.71 of the draft's first tokens, and accepted 0.800" in resumed.message


@pytest.mark.parametrize("stored", [None, "", "nan", "much", "1e9"])
def test_without_a_readable_figure_of_the_suspension_the_first_one_after_it_is_the_reference(
    stored: str | None,
) -> None:
    worth = suspended(replace(NO_GAIN, acceptance=None))
    assert worth.acceptance is None
    worth = worth.model_copy(update={"acceptance": stored})
    low = replace(NO_GAIN, recent_acceptance=0.1)
    decided = decide(BOTH, worth, low, NOW + MINUTE)
    assert (decided.acceptance, decided.acceptance_fell_since) == ("0.800", None)


def test_a_person_who_takes_the_reason_away_resumes_training() -> None:
    worth = suspended(NO_GAIN)
    assert decide(None, worth, NO_GAIN, NOW + MINUTE) == TrainingWorth(message=CRITERIA_UNSET)
    other = SuspendWhen(saving_below_cost=True)
    assert reason(other, worth, NO_GAIN, NOW + MINUTE) is None


FACTS = st.builds(
    WorthFacts,
    active=st.none() | st.integers(1, 2),
    cost=st.none() | st.just(100),
    saved=st.none() | st.integers(-10, 300),
    comparable=st.booleans(),
    without_gain=st.integers(0, 8),
    gain_is_coming=st.booleans(),
    acceptance=st.none() | st.floats(0, 1),
    recent_acceptance=st.none() | st.floats(0, 1),
)
CRITERIA = st.builds(
    SuspendWhen,
    candidates_without_gain=st.none() | st.integers(3, 6),
    saving_below_cost=st.booleans(),
    resume_after_seconds=st.sampled_from([3600, 86400, 604800]),
)
STEPS = st.lists(st.tuples(FACTS, st.integers(1, 3600 * 7)), min_size=1, max_size=40)


@given(CRITERIA, STEPS)
def test_training_never_flaps_and_every_suspension_is_bounded(
    criteria: SuspendWhen, steps: list[tuple[WorthFacts, int]]
) -> None:
    worth, now = decide(criteria, TrainingWorth(), WorthFacts(), NOW), NOW
    changes = [(NOW, False)]
    for facts, seconds in steps:
        now += timedelta(seconds=seconds)
        before, worth = worth, decide(criteria, worth, facts, now)
        assert decide(criteria, worth, facts, now).suspended_for is worth.suspended_for
        if worth.suspended_for is not before.suspended_for:
            changes.append((now, worth.suspended_for is not None))
            assert worth.since == now
            assert worth.message
        if worth.suspended_for is not None and before.suspended_for is None:
            assert not facts.gain_is_coming
            allowed = (criteria.candidates_without_gain or 99) <= facts.without_gain
            assert allowed or (criteria.saving_below_cost and facts.below_cost)
        if worth.suspended_for is not None:
            assert now - changes[-1][0] < timedelta(seconds=criteria.resume_after_seconds)
    for (earlier, was), (later, is_now) in pairwise(changes):
        assert was is not is_now
        if is_now:
            assert later - earlier >= MIN_TRAINING


@given(STEPS)
def test_without_criteria_training_is_never_suspended(steps: list[tuple[WorthFacts, int]]) -> None:
    worth, now = TrainingWorth(), NOW
    for facts, seconds in steps:
        now += timedelta(seconds=seconds)
        worth = decide(None, worth, facts, now)
        assert worth == TrainingWorth()


@given(CRITERIA, FACTS, st.integers(-86400 * 30, 86400 * 30))
def test_a_clock_that_is_set_back_delays_no_resumption(criteria: SuspendWhen, facts: WorthFacts, seconds: int) -> None:
    worth = TrainingWorth(since=NOW, suspended_for=SuspensionReason.NO_GAIN, suspended_version=1)
    decided = decide(criteria, worth, facts, NOW + timedelta(seconds=seconds))
    assert decided.since is not None
    assert decided.since <= NOW + timedelta(seconds=seconds)
