"""Single decisions of the rollout that an operator of a service would ask about."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import MAX_PODS_SHOWN, RolloutPhase
from aurora_operator.plan.rollout.roll import AnalysisState, PodWindow, Roll
from aurora_operator.plan.rollout.steps import Advance
from aurora_operator.plan.rollout.transition import step
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
    traffic,
    watching,
    world,
)


def test_a_roll_starts_with_the_canary_and_a_higher_epoch() -> None:
    made = step(world(pod(A), pod(B), next_version=1), Roll())
    assert (made.rollout.phase, made.rollout.version, made.rollout.epoch) == (RolloutPhase.CANARY, 1, 4)
    assert not made.swaps, "the decision is stored before any pod is asked"
    assert step(world(pod(A), pod(B)), made.rollout).swaps == {A: 1}


@pytest.mark.parametrize(
    "other",
    [
        pod(B, ready=False, starting=True),
        pod(B, version=7),
        pod(B, checksum=None),
        pod(B, swap=SwapStatus(phase=SwapPhase.SWAPPING, version=0)),
    ],
    ids=["starting: may come up with an older version", "stray", "no checksum", "still swapping"],
)
def test_no_roll_starts_from_pods_that_are_not_settled(other: Pod) -> None:
    assert step(world(pod(A), other, next_version=1), Roll()).rollout.phase is RolloutPhase.IDLE


def test_a_pod_that_cannot_be_scheduled_does_not_hold_up_a_roll() -> None:
    waiting = pod(B, None, ready=False, starting=False)
    assert step(world(pod(A), waiting, next_version=1), Roll()).rollout.phase is RolloutPhase.CANARY


def test_a_canary_comes_after_its_baseline_and_passes_by_judgement() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    state = step(world(pod(A, **traffic(0)), pod(B, **traffic(0)), next_version=1, policy=policy), Roll()).rollout
    seconds = swapped = 0
    while state.phase is RolloutPhase.CANARY and seconds < 200:
        seconds += 2
        a = pod(A, 1, **traffic(seconds, length=2.5)) if swapped else pod(A, **traffic(seconds))
        now = NOW + timedelta(seconds=seconds)
        made = step(world(a, pod(B, **traffic(seconds)), now=now, policy=policy), state)
        swapped = seconds if made.swaps.get(A) == 1 else swapped
        state = made.rollout
    assert swapped >= 10, "the baseline takes an interval"
    assert state.phase is RolloutPhase.ROLLING
    assert seconds - swapped >= 30, "a time to settle, and two intervals that were judged"
    assert "acceptance length" in state.message


def test_a_slow_baseline_does_not_count_as_lack_of_progress() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}
    started = rolling(RolloutPhase.CANARY, analysis=AnalysisState())
    first = step(world(pod(A, **traffic(0)), pod(B, **traffic(0)), policy=policy), started).rollout
    late: dict[str, Any] = {"now": NOW + timedelta(hours=1), "policy": policy}
    pods = pod(A, **traffic(20)), pod(B, **traffic(20))
    measured = step(world(*pods, **late), first)
    assert measured.rollout.analysis is not None
    assert measured.rollout.analysis.baseline is not None
    assert step(world(*pods, **late), measured.rollout).swaps == {A: 1}


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
    assert made.rollout.phase is RolloutPhase.ROLLING_BACK
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "live traffic disagrees: acceptance length 1.10 against 2.00" in made.rollout.message
    died_between = step(replace(seen, rejected=frozenset({1}), channel_message="live traffic disagrees"), first)
    assert (died_between.rollout.phase, died_between.advance) == (RolloutPhase.ROLLING_BACK, None)
    assert died_between.rollout.message == "live traffic disagrees"


def test_a_canary_without_traffic_holds_until_a_person_decides() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}
    state = step(world(pod(A, 1), pod(B), policy=policy), canary()).rollout
    late: dict[str, Any] = {"now": NOW + timedelta(hours=5), "policy": policy}
    held = step(world(pod(A, 1), pod(B), **late), state)
    assert (held.rollout.phase, held.swaps) == (RolloutPhase.CANARY, {}), "waiting for traffic is no lack of progress"
    vouched = step(world(pod(A, 1), pod(B), promote=1, **late), state)
    assert (vouched.rollout.phase, vouched.swaps) == (RolloutPhase.ROLLING, {B: 1})
    assert step(world(pod(A, 1), pod(B), promote=2, **late), state).rollout.phase is RolloutPhase.CANARY
    aborted = step(world(pod(A, 1), pod(B), abort=1, **late), state)
    assert aborted.advance == Advance(0, ChannelReason.REFUSED, reject=1)


DEADLINE = 60


def waiting(seconds: float, requests: int, *, newer_version: int | None = 2, **more: Any) -> World:
    """A canary that answered ``requests`` since its window began at NOW. Its peer answered plenty."""
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": DEADLINE, **more.pop("policy", {})}
    seen = LiveCounters(requests=requests, verify_rounds=40 * requests, answer_tokens=80 * requests)
    pods = [pod(A, 1, boot="b", counters=seen), pod(B, **traffic(seconds))]
    if more.pop("extra", False):
        pods.append(pod(C, None, ready=False))
    return world(*pods, now=NOW + timedelta(seconds=seconds), newer_version=newer_version, policy=policy, **more)


def canary_with_window() -> Roll:
    """The canary's window begins now."""
    begun = step(waiting(0, 0, newer_version=None), canary()).rollout
    assert begun.analysis is not None
    assert not begun.analysis.settling
    return begun


def test_a_canary_that_cannot_be_judged_stops_for_a_newer_version_without_blame() -> None:
    ended = step(waiting(DEADLINE + 1, 0), canary_with_window())
    assert (ended.rollout.phase, ended.advance, ended.event) == (RolloutPhase.ROLLING_BACK, None, "RolloutStopped")
    assert "live traffic cannot decide about version 1, and version 2 is newer" in ended.rollout.message
    dried_up = step(waiting(30 * DEADLINE, 40), canary_with_window())
    assert dried_up.rollout.phase is RolloutPhase.ROLLING_BACK, "a few requests, and then none any more"
    baseline = rolling(RolloutPhase.CANARY, analysis=AnalysisState(window_begins=NOW))
    quiet = world(pod(A), pod(B), now=NOW + timedelta(hours=1), newer_version=2, policy={"analysis": JUDGED})
    assert step(quiet, baseline).rollout.phase is RolloutPhase.ROLLING_BACK, "nor is its baseline waited for"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (waiting(5 * DEADLINE, 0, newer_version=None), "nothing newer waits"),
        (waiting(DEADLINE - 1, 0), "the deadline is not over"),
        (waiting(DEADLINE + 1, 6), "traffic is thin, but a judgement comes within ten deadlines"),
        (waiting(5 * DEADLINE, 0, observation_gap=True), "nobody observed meanwhile"),
        (waiting(5 * DEADLINE, 0, policy={"paused": True}), "a person holds it"),
        (waiting(5 * DEADLINE, 0, policy={"max_not_ready": 0}, extra=True), "pods are missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_canary_that_waits_for_traffic_is_not_stopped_too_early(seen: World, why: str) -> None:
    assert step(seen, canary_with_window()).rollout.phase in (RolloutPhase.CANARY, RolloutPhase.PAUSED), why


def test_a_change_of_serving_settings_stops_a_judged_roll_without_blame() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    edited = step(world(pod(A, 1), pod(B), serving_digest="other", policy=policy), canary())
    assert (edited.rollout.phase, edited.advance) == (RolloutPhase.ROLLING_BACK, None)
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
    assert (died_between.rollout.phase, died_between.rollout.message) == (RolloutPhase.ROLLING_BACK, "why")


def test_a_pod_with_a_third_version_returns_before_the_canary_goes_on() -> None:
    assert step(world(pod(A), pod(B, 7), pod(C)), rolling(RolloutPhase.CANARY)).swaps == {B: 0}


def test_a_watch_ends_after_its_time_or_when_a_person_vouches() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    early = step(world(pod(A, 1), now=NOW + timedelta(seconds=59), **now), watching())
    assert early.rollout.phase is RolloutPhase.WATCHING
    over = step(world(pod(A, 1), now=NOW + timedelta(seconds=60), **now), watching())
    assert (over.rollout.phase, over.advance) == (RolloutPhase.IDLE, None)
    vouched = step(world(pod(A, 1), promote=1, **now), watching())
    assert (vouched.rollout.phase, vouched.event) == (RolloutPhase.IDLE, "Vouched")


@pytest.mark.parametrize("phase", [RolloutPhase.WATCHING, RolloutPhase.IDLE])
def test_a_person_can_abort_the_active_version_at_any_time(phase: RolloutPhase) -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    made = step(world(pod(A, 1), abort=1, **now), watching().model_copy(update={"phase": phase}))
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert made.rollout.version == 1
    after: dict[str, Any] = {**now, "active": 0, "previous": None, "rejected": {1}}
    assert step(world(pod(A, 0), abort=1, **after), Roll()).advance is None, "an old request has no effect"


def test_a_pin_makes_its_version_active_and_keeps_other_versions_out() -> None:
    made = step(world(pod(A, 3), pod(B, 3), active=3, pinned_version=1, pin_set=True, next_version=4), Roll(epoch=7))
    assert made.advance == Advance(1, ChannelReason.PINNED)
    assert made.rollout.epoch == 8
    held: dict[str, Any] = {
        "active": 1,
        "pinned_version": 1,
        "pin_set": True,
        "next_version": 4,
        "policy": {"paused": True},
    }
    assert step(world(pod(A, 3), pod(B, 3), **held), made.rollout).swaps == {A: 1}, "at once: paused or not"
    rest = step(world(pod(A, 1), pod(B, 1), **held), made.rollout)
    assert (rest.rollout.phase, rest.swaps, rest.advance) == (RolloutPhase.IDLE, {}, None)


def test_a_pin_ends_a_roll_without_blame() -> None:
    to_active = step(world(pod(A, 1), pod(B), pinned_version=0, pin_set=True), rolling())
    assert (to_active.rollout.phase, to_active.advance) == (RolloutPhase.ROLLING_BACK, None)
    to_rolled = step(world(pod(A, 1), pod(B), pinned_version=1, pin_set=True), rolling())
    assert to_rolled.advance == Advance(1, ChannelReason.PINNED)
    third = step(world(pod(A, 1), pod(B), pinned_version=2, pin_set=True), rolling())
    assert (third.rollout.phase, third.advance, third.swaps) == (RolloutPhase.ROLLING_BACK, None, {A: 0})
    stuck = rolling(RolloutPhase.ROLLING_BACK)
    assert step(world(pod(A, 1), pod(B, 1), pinned_version=1, pin_set=True), stuck).advance == Advance(
        1, ChannelReason.PINNED
    )


def test_a_pin_of_a_version_that_never_passed_pauses_rolls() -> None:
    assert step(world(pod(A), pod(B), next_version=1, pin_set=True), Roll()).rollout.phase is RolloutPhase.IDLE
    assert step(world(pod(A, 1), pod(B), pin_set=True), rolling()).rollout.phase is RolloutPhase.PAUSED


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


def test_a_missing_canary_has_its_whole_deadline_again_after_a_pause() -> None:
    missing = pod(A, None, ready=False)
    judged: dict[str, Any] = {"analysis": JUDGED}
    stored = rolling(
        RolloutPhase.CANARY,
        analysis=AnalysisState(baseline=BASELINE, window_begins=NOW, canary_missing_since=NOW),
        engine_boots={A: "boot"},
    )
    waited = step(world(missing, pod(B), pod(C), policy=judged | {"paused": True}), stored).rollout
    later: dict[str, Any] = {"now": NOW + timedelta(hours=1), "policy": judged}
    for _ in range(2):
        again = step(world(missing, pod(B), pod(C), **later), waited)
        waited = again.rollout
        assert (waited.phase, again.advance) == (RolloutPhase.CANARY, None), waited.message


def test_at_most_max_swapping_pods_swap_at_once() -> None:
    busy = pod(B, swap=SwapStatus(phase=SwapPhase.SWAPPING, version=1))
    assert step(world(pod(A, 1), busy, pod(C)), rolling()).swaps == {}
    assert step(world(pod(A, 1), busy, pod(C), policy={"max_swapping": 2}), rolling()).swaps == {C: 1}


def test_promotion_needs_every_ready_pod_confirmed() -> None:
    assert step(world(pod(A, 1), pod(B)), rolling()).advance is None
    assert step(world(pod(A, 1), pod(B, 1, checksum=None)), rolling()).advance is None
    silent = pod(B, None, ready=False, starting=True, up=True)
    assert step(world(pod(A, 1), silent), rolling()).advance is None, "it may still answer requests, with version 0"
    crashed = pod(B, None, ready=False, starting=True)
    assert step(world(pod(A, 1), crashed), rolling()).advance == Advance(1, ChannelReason.PROMOTED)
    done = step(world(pod(A, 1), pod(B, 1)), rolling())
    assert done.advance == Advance(1, ChannelReason.PROMOTED)
    assert (done.rollout.phase, done.rollout.updated) == (RolloutPhase.IDLE, 2)


@pytest.mark.parametrize("set_back", [timedelta(seconds=30), timedelta(days=1)])
def test_a_clock_that_is_set_back_delays_nothing(set_back: timedelta) -> None:
    now: dict[str, Any] = {"now": NOW - set_back, "policy": {"analysis": JUDGED}}
    stored = rolling(
        RolloutPhase.CANARY, analysis=AnalysisState(baseline=BASELINE, window_begins=NOW, canary_missing_since=NOW)
    )
    again = step(world(pod(A, 1), pod(B), **now), stored).rollout
    assert again.analysis is not None
    assert again.started is not None
    assert again.progressed is not None
    assert again.analysis.window_begins is not None
    assert max(again.started, again.progressed, again.analysis.window_begins) <= NOW - set_back
    failed = pod(B, swap=FAILED.model_copy(update={"finished": NOW - set_back}))
    assert step(world(pod(A, 1), failed, **now), stored).advance == Advance(0, ChannelReason.REFUSED, reject=1)
    stray = pod(A, 2, swap=SwapStatus(phase=SwapPhase.FAILED, version=0, finished=NOW))
    assert step(world(stray, **now), Roll()).swaps == {A: 0}


def test_the_state_forgets_pods_that_no_longer_exist() -> None:
    """Otherwise the windows of pods that are gone would leave no room for those that serve."""
    gone = [PodWindow(name=f"pod-{n}", boot="b", version=1, live=LiveCounters()) for n in range(MAX_PODS_SHOWN)]
    state = canary(windows=gone, engine_boots={window.name: "b" for window in gone})
    now = step(world(pod(A, 1), pod(B), policy={"analysis": JUDGED}), state).rollout
    assert now.analysis is not None
    assert {window.name for window in now.analysis.windows} == {A, B}
    assert set(now.engine_boots) == {A}


def test_no_progress_rolls_back_but_time_without_an_operator_does_not_count() -> None:
    late = NOW + timedelta(seconds=601)
    assert step(world(pod(A, 1), pod(B), now=late), rolling()).rollout.phase is RolloutPhase.ROLLING_BACK
    assert (
        step(world(pod(A, 1), pod(B), now=late, observation_gap=True), rolling()).rollout.phase is RolloutPhase.ROLLING
    )


def test_pause_stops_before_the_next_pod_and_resumes() -> None:
    paused = step(world(pod(A, 1), pod(B), policy={"paused": True}), rolling())
    assert (paused.rollout.phase, paused.swaps) == (RolloutPhase.PAUSED, {})
    late = NOW + timedelta(hours=5)
    still = step(world(pod(A, 1), pod(B), now=late, policy={"paused": True}), paused.rollout)
    assert (still.rollout.phase, still.swaps) == (RolloutPhase.PAUSED, {})
    assert step(world(pod(A, 1), pod(B), now=late), still.rollout).rollout.phase is RolloutPhase.CANARY


def test_the_message_says_that_a_version_waits_while_rolls_are_paused() -> None:
    held = step(world(pod(A), pod(B), next_version=1, policy={"paused": True}), Roll())
    assert (held.rollout.phase, held.rollout.message) == (
        RolloutPhase.IDLE,
        "waiting to roll out version 1, which passed its measurement: spec.rollout.paused is true",
    )
    assert step(world(pod(A), pod(B), policy={"paused": True}), held.rollout).rollout.message == "", "it was superseded"
    assert step(world(pod(A), pod(B), next_version=1), held.rollout).rollout.phase is not RolloutPhase.IDLE


def test_a_promotion_that_only_the_channel_records_is_recorded_in_the_status() -> None:
    made = step(world(pod(A, 1), pod(B, 1), active=1, epoch=5, promotable=set()), rolling())
    assert (made.rollout.phase, made.event, made.swaps) == (RolloutPhase.IDLE, "Promoted", {})


def test_an_idle_roll_returns_stray_pods_one_by_one_and_retries_failures_later() -> None:
    assert step(world(pod(A, 2), pod(B, 2)), Roll()).swaps == {A: 0}
    failed = SwapStatus(phase=SwapPhase.FAILED, version=0, finished=NOW)
    assert step(world(pod(A, 2, swap=failed)), Roll()).swaps == {}
    later = NOW + timedelta(seconds=6)
    assert step(world(pod(A, 2, swap=failed), now=later), Roll()).swaps == {A: 0}


def test_a_higher_epoch_of_a_pod_is_passed_at_once_unless_the_status_knows_it_too() -> None:
    assert [step(world(pod(A), fencing_epoch=41), Roll(epoch=e)).rollout.epoch for e in (3, 41)] == [42, 41]


def test_a_version_that_a_person_vouches_for_is_not_judged() -> None:
    first, seen = judged_bad()
    assert step(seen, first).rollout.phase is RolloutPhase.ROLLING_BACK
    vouched = step(replace(seen, promote=1), first)
    assert (vouched.rollout.phase, vouched.advance, vouched.swaps) == (RolloutPhase.ROLLING, None, {B: 1})
    assert first.analysis is not None
    judged = rolling(analysis=first.analysis.model_copy(update={"bad_windows": 2}))
    assert step(replace(seen, promote=1), judged).advance is None, "nor is an earlier judgement remembered"


@pytest.mark.parametrize("rejected", [True, False])
def test_a_pod_with_a_rejected_version_returns_even_during_a_pause(rejected: bool) -> None:
    """A pod that was down while its version was rolled back comes up with that version."""
    late: dict[str, Any] = {"policy": {"paused": True}, "rejected": frozenset({1} if rejected else ())}
    rest = step(world(pod(A, 1), pod(B), **late), Roll())
    assert rest.swaps == ({A: 0} if rejected else {}), "anything else waits for the pause to end"
    watched: dict[str, Any] = {"policy": {"paused": True, "analysis": JUDGED}, "active": 2, "previous": 0}
    seen = world(pod(A, 1), pod(B, 2), rejected=late["rejected"], **watched)
    assert step(seen, watching().model_copy(update={"version": 2})).swaps == ({A: 2} if rejected else {})
