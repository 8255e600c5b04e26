"""The rollout's single decisions that an operator of a service would ask about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_api.agent import LiveCounters, SwapPhase, SwapStatus
from aurora_api.records import ChannelReason
from aurora_api.speculator import Rollout
from aurora_api.status import AnalysisStatus, RolloutPhase, RolloutStatus
from aurora_operator.plan.analysis import Live
from aurora_operator.plan.rollout import step
from aurora_operator.plan.world import Advance, Pod, World

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "pod-a", "pod-b", "pod-c"
UNJUDGED: dict[str, Any] = {"consecutive_success_limit": 0, "watch_seconds": 0}
JUDGED: dict[str, Any] = {
    "interval_seconds": 10,
    "min_rounds": 100,
    "consecutive_success_limit": 2,
    "watch_seconds": 60,
}


def pod(name: str, version: int | None = 0, **more: Any) -> Pod:
    return Pod(name, **{"ready": True, "version": version, "checksum": f"sum-{version}", **more})


def world(*pods: Pod, now: datetime = NOW, policy: dict[str, Any] | None = None, **more: Any) -> World:
    rules = Rollout.model_validate({"analysis": UNJUDGED, **(policy or {})})
    return World(**{"now": now, "active": 0, "epoch": 3, "pods": pods, "policy": rules, "earned": {1}, **more})


def rolling(phase: RolloutPhase = RolloutPhase.ROLLING, **more: Any) -> RolloutStatus:
    return RolloutStatus(
        **{"phase": phase, "version": 1, "epoch": 4, "started": NOW, "progressed": NOW, "total": 2, **more}
    )


def test_a_roll_starts_with_the_canary_and_a_higher_epoch() -> None:
    made = step(world(pod(A), pod(B), offer=1), RolloutStatus())
    assert (made.rollout.phase, made.rollout.version, made.rollout.epoch) == (RolloutPhase.CANARY, 1, 4)
    assert not made.swaps, "the decision is written down before any pod is asked"
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
    assert step(world(pod(A), other, offer=1), RolloutStatus()).rollout.phase is RolloutPhase.IDLE


def test_a_pod_that_cannot_be_scheduled_does_not_hold_up_a_roll() -> None:
    waiting = pod(B, None, ready=False, starting=False)
    assert step(world(pod(A), waiting, offer=1), RolloutStatus()).rollout.phase is RolloutPhase.CANARY


def live(seconds: float, *, length: float = 2.0, rounds: int = 50, boot: str = "b") -> Live:
    """A pod's counters after ``seconds`` of traffic: ``rounds`` per second, each worth ``length`` answer tokens."""
    done = int(seconds * rounds)
    return Live(
        boot, LiveCounters(verify_rounds=done, answer_tokens=int(done * length), gaps=done, requests=done // 20)
    )


def test_a_canary_comes_after_its_baseline_and_passes_by_judgement() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    state = step(world(pod(A, live=live(0)), pod(B, live=live(0)), offer=1, policy=policy), RolloutStatus()).rollout
    seen = []
    swapped = 0.0
    for seconds in range(0, 200, 2):
        now = NOW + timedelta(seconds=seconds)
        version = 1 if swapped else 0
        tokens = live(seconds, length=2.5 if swapped else 2.0)
        made = step(world(pod(A, version, live=tokens), pod(B, live=live(seconds)), now=now, policy=policy), state)
        state = made.rollout
        if made.swaps.get(A) == 1:
            swapped = seconds
        seen.append((seconds, made.event))
        if made.event == "CanaryPassed":
            break
    assert swapped >= 10, "the baseline takes an interval"
    assert state.phase is RolloutPhase.ROLLING
    assert seconds - swapped >= 30, "an interval to settle, and two that were judged"
    assert "acceptance length" in state.message


def test_a_canary_that_live_traffic_refuses_is_taken_back_for_good() -> None:
    baseline = LiveCounters(verify_rounds=1000, answer_tokens=2000)
    state = rolling(RolloutPhase.CANARY, analysis=AnalysisStatus(since=NOW, baseline=baseline))
    policy: dict[str, Any] = {"analysis": JUDGED}
    first = step(world(pod(A, 1, live=live(0)), pod(B, live=live(0)), policy=policy), state).rollout
    later = NOW + timedelta(seconds=20)
    made = step(world(pod(A, 1, live=live(20, length=1.1)), pod(B, live=live(20)), now=later, policy=policy), first)
    assert made.rollout.phase is RolloutPhase.ROLLING_BACK
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert "live traffic disagrees: acceptance length 1.10 against 2.00" in made.rollout.message


def test_a_canary_without_traffic_holds_until_a_person_decides() -> None:
    baseline = LiveCounters(verify_rounds=1000, answer_tokens=2000)
    state = rolling(RolloutPhase.CANARY, analysis=AnalysisStatus(since=NOW, baseline=baseline))
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}
    state = step(world(pod(A, 1), pod(B), policy=policy), state).rollout
    late: dict[str, Any] = {"now": NOW + timedelta(hours=5), "policy": policy}
    held = step(world(pod(A, 1), pod(B), **late), state)
    assert (held.rollout.phase, held.swaps) == (RolloutPhase.CANARY, {}), "waiting for traffic is no lack of progress"
    vouched = step(world(pod(A, 1), pod(B), promote=1, **late), state)
    assert (vouched.rollout.phase, vouched.swaps) == (RolloutPhase.ROLLING, {B: 1})
    assert step(world(pod(A, 1), pod(B), promote=2, **late), state).rollout.phase is RolloutPhase.CANARY
    aborted = step(world(pod(A, 1), pod(B), abort=1, **late), state)
    assert aborted.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)


def test_a_canary_that_is_lost_is_judged_from_the_start() -> None:
    baseline = LiveCounters(verify_rounds=1000, answer_tokens=2000)
    before = AnalysisStatus(since=NOW, baseline=baseline, successes=1)
    state = rolling(RolloutPhase.CANARY, analysis=before)
    policy: dict[str, Any] = {"analysis": JUDGED}
    lost = step(world(pod(A, 1, ready=False), pod(B), policy=policy), state).rollout
    assert lost.analysis is not None
    assert (lost.analysis.successes, lost.analysis.baseline) == (0, baseline)


def watching(**more: Any) -> RolloutStatus:
    baseline = LiveCounters(verify_rounds=1000, answer_tokens=2000)
    return rolling(RolloutPhase.WATCHING, analysis=AnalysisStatus(since=NOW, baseline=baseline), **more)


def test_a_promoted_version_that_degrades_gives_way_to_the_previous_one_everywhere_at_once() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": policy}
    first = step(world(pod(A, 1, live=live(0)), pod(B, 1, live=live(0)), **now), watching()).rollout
    later = NOW + timedelta(seconds=20)
    bad = [pod(name, 1, live=live(20, length=1.2)) for name in (A, B)]
    made = step(world(*bad, now=later, **now), first)
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert made.swaps == {}, "the decision is in the channel before any pod is asked"
    back: dict[str, Any] = {"active": 0, "previous": None, "epoch": 6, "policy": policy, "earned": set()}
    assert step(world(*bad, now=later, **back), made.rollout).swaps == {A: 0, B: 0}
    died_between = step(world(*bad, now=later, **back), first)
    assert died_between.rollout.phase is RolloutPhase.ROLLING_BACK, "the channel speaks, although the status does not"


def test_a_watch_ends_in_peace_by_time_or_by_a_persons_word() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    assert step(world(pod(A, 1), now=NOW + timedelta(seconds=59), **now), watching()).rollout.phase is (
        RolloutPhase.WATCHING
    )
    over = step(world(pod(A, 1), now=NOW + timedelta(seconds=60), **now), watching())
    assert (over.rollout.phase, over.advance) == (RolloutPhase.IDLE, None)
    assert step(world(pod(A, 1), promote=1, **now), watching()).rollout.phase is RolloutPhase.IDLE
    assert step(world(pod(A, 1), abort=1, **now), watching()).advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)


def test_a_pin_ends_a_roll_without_blame_and_then_moves_the_channel() -> None:
    ended = step(world(pod(A, 1), pod(B), pin=0), rolling())
    assert (ended.rollout.phase, ended.advance) == (RolloutPhase.ROLLING_BACK, None)
    made = step(world(pod(A, 3), pod(B, 3), active=3, pin=1, offer=4), RolloutStatus())
    assert made.advance == Advance(1, ChannelReason.PINNED)
    assert step(world(pod(A, 3), pod(B, 3), active=1, pin=1, offer=4), made.rollout).swaps == {A: 1}
    held = step(world(pod(A, 1), pod(B, 1), active=1, pin=1, offer=4), made.rollout)
    assert (held.rollout.phase, held.swaps, held.advance) == (RolloutPhase.IDLE, {}, None)


def test_no_further_pod_is_swapped_while_too_many_are_not_ready() -> None:
    down = [pod(name, None, ready=False) for name in ("pod-x", "pod-y")]
    assert step(world(pod(A, 1), pod(B), *down), rolling()).swaps == {}
    assert step(world(pod(A, 1), pod(B), *down, policy={"max_unavailable": 2}), rolling()).swaps == {B: 1}


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


FAILED = SwapStatus(phase=SwapPhase.FAILED, version=1, finished=NOW, error="shapes differ")


@pytest.mark.parametrize("phase", [RolloutPhase.CANARY, RolloutPhase.ROLLING, RolloutPhase.PAUSED])
def test_a_failed_swap_takes_the_version_back_for_good(phase: RolloutPhase) -> None:
    made = step(world(pod(A, 1), pod(B, swap=FAILED), policy={"paused": phase is RolloutPhase.PAUSED}), rolling(phase))
    assert made.rollout.phase is RolloutPhase.ROLLING_BACK
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert "shapes differ" in made.rollout.message
    back = step(world(pod(A, 1), pod(B, swap=FAILED)), made.rollout)
    assert back.swaps == {A: 0}
    assert step(world(pod(A, 0), pod(B, swap=FAILED)), back.rollout).rollout.phase is RolloutPhase.IDLE


def test_the_failure_of_an_earlier_roll_is_not_held_against_this_one() -> None:
    old = FAILED.model_copy(update={"finished": NOW - timedelta(seconds=1)})
    assert step(world(pod(A, swap=old), pod(B)), rolling(RolloutPhase.CANARY)).rollout.phase is RolloutPhase.CANARY


def test_different_weights_under_one_version_are_a_failure() -> None:
    made = step(world(pod(A, 1), pod(B, 1, checksum="other")), rolling())
    assert made.rollout.phase is RolloutPhase.ROLLING_BACK
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)


def test_no_progress_rolls_back_but_time_without_an_operator_does_not_count() -> None:
    late = NOW + timedelta(seconds=601)
    assert step(world(pod(A, 1), pod(B), now=late), rolling()).rollout.phase is RolloutPhase.ROLLING_BACK
    assert step(world(pod(A, 1), pod(B), now=late, resumed=True), rolling()).rollout.phase is RolloutPhase.ROLLING


def test_pause_stops_before_the_next_pod_and_resumes() -> None:
    paused = step(world(pod(A, 1), pod(B), policy={"paused": True}), rolling())
    assert (paused.rollout.phase, paused.swaps) == (RolloutPhase.PAUSED, {})
    late = NOW + timedelta(hours=5)
    still = step(world(pod(A, 1), pod(B), now=late, policy={"paused": True}), paused.rollout)
    assert (still.rollout.phase, still.swaps) == (RolloutPhase.PAUSED, {})
    assert step(world(pod(A, 1), pod(B), now=late), still.rollout).rollout.phase is RolloutPhase.CANARY


def test_a_roll_without_pods_ends_without_blaming_the_version() -> None:
    made = step(world(), rolling())
    assert (made.rollout.phase, made.advance) == (RolloutPhase.ROLLING_BACK, None)


def test_promoted_in_the_channel_but_not_in_the_status_is_done() -> None:
    made = step(world(pod(A, 1), pod(B, 1), active=1, epoch=5, earned=set()), rolling())
    assert (made.rollout.phase, made.event, made.swaps) == (RolloutPhase.IDLE, "Promoted", {})


def test_idle_repairs_strays_one_by_one_and_lets_a_failure_rest() -> None:
    assert step(world(pod(A, 2), pod(B, 2)), RolloutStatus()).swaps == {A: 0}
    failed = SwapStatus(phase=SwapPhase.FAILED, version=0, finished=NOW)
    assert step(world(pod(A, 2, swap=failed)), RolloutStatus()).swaps == {}
    later = NOW + timedelta(seconds=6)
    assert step(world(pod(A, 2, swap=failed), now=later), RolloutStatus()).swaps == {A: 0}


def test_a_refused_epoch_is_raised() -> None:
    assert step(world(pod(A), fenced=True), RolloutStatus(epoch=3)).rollout.epoch == 4
