"""Single decisions of the rollout that an operator of a service would ask about."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import MAX_PODS_SHOWN, RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_operator.plan.rollout.facts import facts_of
from aurora_operator.plan.rollout.judgement import Judgement
from aurora_operator.plan.rollout.machine import TRANSITIONS, Advance, Step
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow, Roll, read_roll
from aurora_operator.plan.rollout.world import Pod, World
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapStatus
from aurora_protocol.draft_records import ChannelReason
from tests.unit.operator.rolls import (
    BASELINE,
    FAILED,
    JUDGED,
    NOW,
    A,
    B,
    C,
    canary,
    pod,
    rolling,
    step,
    traffic,
    watching,
    world,
)


@pytest.mark.parametrize(
    "other",
    [
        pod(B, version=7),
        pod(B, checksum=None),
        pod(B, swap=SwapStatus(phase=SwapPhase.SWAPPING, version=0)),
    ],
    ids=["stray", "no checksum", "still swapping"],
)
def test_no_roll_starts_from_pods_that_are_not_settled(other: Pod) -> None:
    assert step(world(pod(A), other, next_version=1), Roll()).rollout.phase is RolloutPhase.IDLE


def judged_bad(**more: Any) -> tuple[Roll, World]:
    """The next reconcile makes one bad judgement too many."""
    policy: dict[str, Any] = {"analysis": JUDGED, **more}
    first = step(world(pod(A, 1, **traffic(0)), pod(B, **traffic(0)), policy=policy), canary(bad_windows=1)).rollout
    bad, later = pod(A, 1, **traffic(20, length=1.1)), NOW + timedelta(seconds=20)
    return first, world(bad, pod(B, **traffic(20)), now=later, policy=policy)


@pytest.mark.parametrize("paused", [False, True])
def test_a_canary_that_live_traffic_rejects_is_rolled_back_for_good(paused: bool) -> None:
    first, seen = judged_bad(paused=paused)
    made = step(seen, first)
    assert made.rollout.phase is RolloutPhase.IDLE
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "live traffic disagrees: acceptance length 1.10 against 2.00" in made.rollout.message
    died_between = step(replace(seen, rejected=frozenset({1}), channel_message="live traffic disagrees"), first)
    assert (died_between.rollout.phase, died_between.advance) == (RolloutPhase.IDLE, None)
    assert died_between.rollout.message == "live traffic disagrees"


def test_a_canary_without_traffic_holds_until_a_person_decides() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}
    state = step(world(pod(A, 1), pod(B), policy=policy), canary()).rollout
    late: dict[str, Any] = {"now": NOW + timedelta(hours=5), "policy": policy}
    held = step(world(pod(A, 1), pod(B), **late), state)
    assert (held.rollout.phase, held.swaps) == (RolloutPhase.JUDGING, {}), "waiting for traffic is no lack of progress"
    pinned = step(world(pod(A, 1), pod(B), pinned_version=1, pin_set=True, **late), state)
    assert pinned.advance == Advance(1, ChannelReason.PINNED)
    aborted = step(world(pod(A, 1), pod(B), abort=1, **late), state)
    assert aborted.advance == Advance(0, ChannelReason.REFUSED, reject=1)


def test_a_canary_that_cannot_be_judged_stops_for_a_newer_version_without_blame() -> None:
    """After ten deadlines of 60 s, unless nothing newer waits, a person holds the roll, or pods are missing."""
    rules: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}

    def after(seconds: float, *more_pods: Pod, newer: int = 2, roll: Roll | None = None, **policy: Any) -> Step:
        now = NOW + timedelta(seconds=seconds)
        seen = world(pod(A, 1), pod(B), *more_pods, now=now, newest_version=newer, policy={**rules, **policy})
        return step(seen, (roll or canary()).model_copy(update={"progressed": None}))

    ended = after(601)
    assert (ended.rollout.phase, ended.advance, ended.event) == (RolloutPhase.IDLE, None, "RolloutStopped")
    assert "live traffic cannot decide about version 1, and version 2 is newer" in ended.rollout.message
    baseline = rolling(RolloutPhase.JUDGING, analysis=AnalysisState(window_begins=NOW))
    assert after(601, roll=baseline).event == "RolloutStopped", "nor is its baseline waited for"
    for held in (after(600), after(601, newer=1), after(601, paused=True)):
        assert held.rollout.phase is RolloutPhase.JUDGING
    assert after(601, pod(C, None, ready=False), max_not_ready=0).rollout.phase is RolloutPhase.JUDGING


def test_a_change_of_serving_settings_stops_a_judged_roll_without_blame() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    edited = step(world(pod(A, 1), pod(B), serving_digest="other", policy=policy), canary())
    assert (edited.rollout.phase, edited.advance) == (RolloutPhase.IDLE, None)
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": policy, "serving_digest": "other"}
    assert step(world(pod(A, 1), **now), watching()).rollout.phase is RolloutPhase.IDLE


def test_a_promoted_version_that_degrades_is_rolled_back_on_all_pods_at_once() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": policy}
    first = step(world(pod(A, 1, **traffic(0)), pod(B, 1, **traffic(0)), **now), watching(bad_windows=1)).rollout
    later = NOW + timedelta(seconds=20)
    bad = [pod(name, 1, **traffic(20, length=1.2)) for name in (A, B)]
    made = step(world(*bad, now=later, **now), first)
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert made.swaps == {}, "the decision is in the channel before any pod is asked"
    back: dict[str, Any] = {
        "active": 0,
        "epoch": 6,
        "policy": policy,
        "promotable": set(),
        "rejected": {1},
        "channel_message": "why",
    }
    assert step(world(*bad, now=later, **back), made.rollout).swaps == {A: 0, B: 0}
    died_between = step(world(*bad, now=later, **back), first)
    assert (died_between.rollout.phase, died_between.rollout.message) == (RolloutPhase.IDLE, "why")


def test_a_watch_ends_after_its_time() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    early = step(world(pod(A, 1), now=NOW + timedelta(seconds=59), **now), watching())
    assert early.rollout.phase is RolloutPhase.JUDGING
    over = step(world(pod(A, 1), now=NOW + timedelta(seconds=60), **now), watching())
    assert (over.rollout.phase, over.advance) == (RolloutPhase.IDLE, None)


def test_no_pod_is_swapped_while_too_many_are_not_ready_and_the_deadline_stands_still() -> None:
    down = [pod(name, None, ready=False) for name in ("pod-x", "pod-y")]
    held = step(world(pod(A, 1), pod(B), *down), rolling())
    assert held.swaps == {}
    late: dict[str, Any] = {"now": NOW + timedelta(hours=1)}
    assert step(world(pod(A, 1), pod(B), *down, **late), held.rollout).rollout.phase is RolloutPhase.ROLLING
    assert step(world(pod(A, 1), pod(B), **late), held.rollout).swaps == {B: 1}
    assert step(world(pod(A, 1), pod(B), *down, policy={"max_not_ready": 2}), rolling()).swaps == {B: 1}
    assert step(world(pod(A, 1), *down), rolling()).advance is None, "nor promoted"
    assert step(world(pod(A), *down, next_version=1), Roll()).rollout.phase is RolloutPhase.IDLE, "nor started"


def test_no_other_pod_joins_a_canary_that_does_not_confirm_its_version_yet() -> None:
    for unsure in (pod(A, 1, checksum=None), pod(A, swap=SwapStatus(phase=SwapPhase.STAGING, version=1))):
        made = step(world(unsure, pod(B), policy={"max_swapping": 2}), rolling(RolloutPhase.JUDGING))
        assert (made.rollout.phase, made.swaps) == (RolloutPhase.JUDGING, {})


def test_promotion_needs_every_ready_pod_confirmed() -> None:
    assert step(world(pod(A, 1), pod(B)), rolling()).advance is None
    assert step(world(pod(A, 1), pod(B, 1, checksum=None)), rolling()).advance is None
    silent = pod(B, None, ready=False, kubernetes_ready=True)
    assert step(world(pod(A, 1), silent), rolling()).advance is None, "it may still answer requests, with version 0"
    crashed = pod(B, None, ready=False)
    assert step(world(pod(A, 1), crashed), rolling()).advance == Advance(1, ChannelReason.PROMOTED)
    done = step(world(pod(A, 1), pod(B, 1)), rolling())
    assert done.advance == Advance(1, ChannelReason.PROMOTED)
    assert (done.rollout.phase, done.rollout.updated) == (RolloutPhase.IDLE, 2)


@pytest.mark.parametrize("paused", ["", "by a person"])
def test_no_baseline_is_measured_in_a_pause_because_it_would_be_old_at_the_first_swap(paused: str) -> None:
    roll = canary(baseline=None)
    for seconds in (0, 30, 60, 90):
        pods = [pod(name, **traffic(seconds)) for name in (A, B)]
        roll = step(world(*pods, paused=paused, now=NOW + timedelta(seconds=seconds)), roll).rollout
    assert roll.analysis is not None
    assert (roll.analysis.baseline is None) is bool(paused)


def test_a_clock_that_is_set_back_delays_nothing() -> None:
    """``ObservedTime`` sees it."""
    set_back = timedelta(days=1)
    now: dict[str, Any] = {"now": NOW - set_back, "observation_gap": True}
    stored = rolling(RolloutPhase.JUDGING, analysis=AnalysisState(baseline=BASELINE, window_begins=NOW))
    facts = facts_of(world(pod(A, 1, swap=FAILED), pod(B), **now), stored)
    assert facts.roll.analysis is not None
    assert facts.roll.progressed == NOW - set_back
    settled = NOW - set_back + timedelta(seconds=20)
    assert facts.roll.analysis.window_begins == settled, "as long as a window ever waits to begin"


def test_the_state_forgets_pods_that_no_longer_exist() -> None:
    """Otherwise the windows of pods that are gone would leave no room for those that serve."""
    gone = [PodWindow(name=f"pod-{n}", boot="b", version=1, live=LiveCounters()) for n in range(MAX_PODS_SHOWN)]
    state = canary(windows=gone, lone_restarts={window.name: 0 for window in gone})
    now = step(world(pod(A, 1), pod(B), policy={"analysis": JUDGED}), state).rollout
    assert now.analysis is not None
    assert {window.name for window in now.analysis.windows} == {A, B}
    assert set(now.lone_restarts) == {A}


def test_the_message_says_that_a_version_waits_while_rolls_are_paused() -> None:
    held = step(world(pod(A), pod(B), next_version=1, policy={"paused": True}), Roll(message="how the last one ended"))
    assert (held.rollout.phase, held.rollout.waiting, held.rollout.message) == (
        RolloutPhase.IDLE,
        "waiting to roll out version 1, which passed its measurement: spec.rollout.paused is true",
        "how the last one ended",
    )
    assert step(world(pod(A), pod(B), policy={"paused": True}), held.rollout).rollout.waiting == "", "it was superseded"
    assert step(world(pod(A), pod(B), next_version=1), held.rollout).rollout.phase is not RolloutPhase.IDLE


def test_a_pod_with_a_third_version_returns_before_the_canary_goes_on() -> None:
    made = step(world(pod(A), pod(B, 7), pod(C)), rolling(RolloutPhase.JUDGING))
    assert (made.swaps, made.rollout.updated) == ({B: 0}, 0)
    busy = pod(B, 7, swap=SwapStatus(phase=SwapPhase.SWAPPING, version=0))
    assert step(world(pod(A), busy, pod(C), policy={"max_swapping": 2}), rolling(RolloutPhase.JUDGING)).swaps == {A: 1}


@pytest.mark.parametrize("phase", [RolloutPhase.JUDGING, RolloutPhase.ROLLING])
@pytest.mark.parametrize("paused", [False, True])
def test_a_late_pod_with_a_third_version_returns_in_every_phase_of_a_roll(phase: RolloutPhase, paused: bool) -> None:
    seen = replace(world(pod(A, 1), pod(B, 7), pod(C)), paused="a person pauses rolls" if paused else "")
    made = step(seen, rolling(phase))
    assert (made.swaps, made.rollout.phase) == ({B: 0}, phase)


def test_strays_return_at_once_even_during_a_pause() -> None:
    ended = Roll(version=1, epoch=5)
    staging = pod(C, 0, swap=SwapStatus(phase=SwapPhase.STAGING, version=1))
    assert step(world(pod(A, 1), pod(B, 1), staging), ended).swaps == {A: 0, B: 0, C: 0}
    others = [pod(A, 2), pod(B, 2), pod(C, 3)]
    assert step(world(*others, policy={"paused": True}), ended).swaps == {A: 0, B: 0, C: 0}
    failed = pod(A, 2, swap=SwapStatus(phase=SwapPhase.FAILED, version=0))
    assert step(world(failed), ended).swaps == {A: 0}


def test_a_pin_is_executed_although_one_pod_cannot_load_the_active_version() -> None:
    pinned: dict[str, Any] = {"pinned_version": 2, "pin_set": True}
    first = step(world(pod(A, 1), pod(B), **pinned), rolling())
    assert (first.advance, first.swaps) == (None, {A: 0}), "no third version serves"
    stuck = pod(A, 1, swap=SwapStatus(phase=SwapPhase.FAILED, version=0, error="no memory"))
    made = step(world(stuck, pod(B), **pinned), first.rollout)
    assert (made.advance, made.event) == (Advance(2, ChannelReason.PINNED), "Pinned")
    after = world(stuck, pod(B), active=2, previous=0, epoch=4, **pinned)
    assert step(after, made.rollout).swaps == {A: 2, B: 2}


def test_each_phase_and_judgement_has_one_row_and_every_phase_is_entered_and_left() -> None:
    pairs = [(phase, row.judgement) for row in TRANSITIONS for phase in row.phases]
    assert len(pairs) == len(set(pairs))
    assert {row.judgement for row in TRANSITIONS} == set(Judgement.__subclasses__())
    for phase in RolloutPhase:
        assert any(phase in row.leads_to and phase not in row.phases for row in TRANSITIONS)
        assert any(phase in row.phases and row.leads_to and phase not in row.leads_to for row in TRANSITIONS)


def test_a_higher_epoch_of_a_pod_is_passed_at_once_unless_the_status_knows_it_too() -> None:
    assert [step(world(pod(A), refused_by_epoch=41), Roll(epoch=e)).rollout.epoch for e in (3, 41)] == [42, 41]


def test_a_stray_pod_returns_during_a_pause_of_a_watch() -> None:
    """A pod that was down while its version was rolled back comes up with that version."""
    policy: dict[str, Any] = {"paused": True, "analysis": JUDGED}
    seen = world(pod(A, 1), pod(B, 2), active=2, previous=0, rejected=frozenset({1}), policy=policy)
    assert step(seen, watching().model_copy(update={"version": 2})).swaps == {A: 2}


@pytest.mark.parametrize("stored", [{}, {"version": 1}, {"version": 2, "analysis": "unreadable"}])
def test_a_roll_whose_state_was_lost_stops_without_blame(stored: dict[str, Any]) -> None:
    roll = read_roll(
        SpeculatorStatus(rollout=RolloutStatus(phase=RolloutPhase.JUDGING, version=2), operator_state=stored)
    )
    made = step(world(pod(A, 2), pod(B), promotable={2}), roll)
    assert (made.rollout.phase, made.advance, made.event) == (RolloutPhase.IDLE, None, "RolloutStopped")
