"""The rollout's single decisions that an operator of a service would ask about."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_api.agent import LiveCounters, SwapPhase, SwapStatus
from aurora_api.records import ChannelReason
from aurora_api.speculator import Rollout
from aurora_api.status import MAX_PODS_SHOWN, AnalysisStatus, PodWindow, RolloutPhase, RolloutStatus
from aurora_operator.plan.rollout import step
from aurora_operator.plan.world import Advance, Pod, World

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "pod-a", "pod-b", "pod-c"
UNJUDGED: dict[str, Any] = {"consecutive_success_limit": 0, "watch_seconds": 0}
JUDGED: dict[str, Any] = {
    "settle_seconds": 10,
    "interval_seconds": 10,
    "min_requests": 50,
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


def traffic(seconds: float, *, length: float = 2.0, boot: str = "b") -> dict[str, Any]:
    """A pod's engine after ``seconds`` of ten requests a second."""
    rounds = int(seconds * 400)
    done = LiveCounters(verify_rounds=rounds, answer_tokens=int(rounds * length), requests=int(seconds * 10))
    return {"boot": boot, "counters": done}


BASELINE = LiveCounters(verify_rounds=40_000, answer_tokens=80_000, requests=1000)


def canary(asked: dict[str, str] | None = None, **more: Any) -> RolloutStatus:
    """The canary has its draft; its window begins now."""
    state = AnalysisStatus(**{"baseline": BASELINE, "since": NOW, "settling": True, **more})
    return rolling(RolloutPhase.CANARY, analysis=state, asked=asked or {}, updated=1)


def test_a_canary_comes_after_its_baseline_and_passes_by_judgement() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    state = step(world(pod(A, **traffic(0)), pod(B, **traffic(0)), offer=1, policy=policy), RolloutStatus()).rollout
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


def test_a_slow_baseline_is_held_against_nobody() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}
    started = rolling(RolloutPhase.CANARY, analysis=AnalysisStatus())
    first = step(world(pod(A, **traffic(0)), pod(B, **traffic(0)), policy=policy), started).rollout
    late: dict[str, Any] = {"now": NOW + timedelta(hours=1), "policy": policy}
    pods = pod(A, **traffic(20)), pod(B, **traffic(20))
    measured = step(world(*pods, **late), first)
    assert measured.rollout.analysis is not None
    assert measured.rollout.analysis.baseline is not None
    assert step(world(*pods, **late), measured.rollout).swaps == {A: 1}


def judged_bad(**more: Any) -> tuple[RolloutStatus, World]:
    """One bad judgement too many is due at the next look."""
    policy: dict[str, Any] = {"analysis": JUDGED, **more}
    first = step(world(pod(A, 1, **traffic(0)), pod(B, **traffic(0)), policy=policy), canary(failures=1)).rollout
    bad, later = pod(A, 1, **traffic(20, length=1.1)), NOW + timedelta(seconds=20)
    return first, world(bad, pod(B, **traffic(20)), now=later, policy=policy)


@pytest.mark.parametrize("paused", [False, True])
def test_a_canary_that_live_traffic_refuses_is_taken_back_for_good(paused: bool) -> None:
    first, seen = judged_bad(paused=paused)
    made = step(seen, first)
    assert made.rollout.phase is RolloutPhase.ROLLING_BACK
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "live traffic disagrees: acceptance length 1.10 against 2.00" in made.rollout.message
    died_between = step(replace(seen, refused=frozenset({1}), reason="live traffic disagrees"), first)
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


def waiting(seconds: float, requests: int, *, newer: int | None = 2, **more: Any) -> World:
    """A canary whose window began at NOW and that has answered ``requests`` since; its peer has plenty."""
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": DEADLINE, **more.pop("policy", {})}
    seen = LiveCounters(requests=requests, verify_rounds=40 * requests, answer_tokens=80 * requests)
    pods = [pod(A, 1, boot="b", counters=seen), pod(B, **traffic(seconds))]
    if more.pop("extra", False):
        pods.append(pod(C, None, ready=False))
    return world(*pods, now=NOW + timedelta(seconds=seconds), newer=newer, policy=policy, **more)


def held() -> RolloutStatus:
    """The canary's window begins now."""
    begun = step(waiting(0, 0, newer=None), canary()).rollout
    assert begun.analysis is not None
    assert not begun.analysis.settling
    return begun


def test_a_canary_that_nobody_can_judge_gives_way_to_a_newer_version_and_is_not_refused() -> None:
    ended = step(waiting(DEADLINE + 1, 0), held())
    assert (ended.rollout.phase, ended.advance, ended.event) == (RolloutPhase.ROLLING_BACK, None, "RolloutStopped")
    assert "too little traffic to judge version 1, and version 2 is newer" in ended.rollout.message
    dried_up = step(waiting(30 * DEADLINE, 40), held())
    assert dried_up.rollout.phase is RolloutPhase.ROLLING_BACK, "a few requests, and then none any more"
    baseline = rolling(RolloutPhase.CANARY, analysis=AnalysisStatus(since=NOW))
    quiet = world(pod(A), pod(B), now=NOW + timedelta(hours=1), newer=2, policy={"analysis": JUDGED})
    assert step(quiet, baseline).rollout.phase is RolloutPhase.ROLLING_BACK, "nor is its baseline waited for"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (waiting(5 * DEADLINE, 0, newer=None), "nothing newer waits"),
        (waiting(DEADLINE - 1, 0), "the deadline is not over"),
        (waiting(DEADLINE + 1, 6), "traffic is thin, but a judgement comes within ten deadlines"),
        (waiting(5 * DEADLINE, 0, resumed=True), "nobody looked meanwhile"),
        (waiting(5 * DEADLINE, 0, policy={"paused": True}), "a person holds it"),
        (waiting(5 * DEADLINE, 0, policy={"max_unavailable": 0}, extra=True), "pods are missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_canary_is_not_given_up_lightly(seen: World, why: str) -> None:
    assert step(seen, held()).rollout.phase in (RolloutPhase.CANARY, RolloutPhase.PAUSED), why


def test_a_canary_that_is_not_seen_is_waited_for_and_no_other_pod_takes_its_place() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}
    silent = pod(A, None, checksum=None, ready=False, up=True)
    lost = step(world(silent, pod(B), policy=policy), canary(successes=1, failures=1, asked={A: "b"}))
    assert lost.swaps == {}
    assert lost.rollout.analysis is not None
    assert (lost.rollout.analysis.successes, lost.rollout.analysis.failures) == (1, 1)
    back = step(world(pod(A, 1), pod(B), now=NOW + timedelta(seconds=30), policy=policy), lost.rollout).rollout
    assert back.analysis is not None
    assert back.analysis.missing_since is None
    late = step(world(silent, pod(B), now=NOW + timedelta(seconds=61), policy=policy), lost.rollout)
    assert late.advance == Advance(0, ChannelReason.REFUSED, reject=1), "a draft whose pod never came back is to blame"
    gone = step(world(pod(B), pod(C), policy=policy), canary())
    assert gone.swaps == {B: 1}, "a pod that was deleted is replaced"


@pytest.mark.parametrize("phase", [RolloutPhase.CANARY, RolloutPhase.ROLLING])
@pytest.mark.parametrize("judged", [True, False])
def test_a_draft_with_which_engines_end_is_taken_back(phase: RolloutPhase, judged: bool) -> None:
    """Else a version that nobody judges ends engines, is taken back without blame and offered again, for ever."""
    policy: dict[str, Any] = {"analysis": JUDGED if judged else UNJUDGED}
    state = canary().model_copy(update={"phase": phase} | ({} if judged else {"analysis": None}))
    for number in range(2):
        served = world(pod(A, 1, **traffic(0, boot=f"{number}")), pod(B), policy=policy)
        state = step(served, state).rollout
        down = step(world(pod(A, None, ready=False, starting=True), pod(B), policy=policy), state)
        assert down.advance is None
        state = down.rollout
    again = step(world(pod(A, 0, **traffic(0, boot="2")), pod(B), policy=policy), state)
    assert again.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "2 engines ended while they served version 1" in again.rollout.message


def test_an_engine_that_ends_before_it_was_seen_with_the_draft_counts_also_without_judgement() -> None:
    state = step(world(pod(A, boot="b0"), pod(B), offer=1), RolloutStatus()).rollout
    for number in range(2):
        asked = step(world(pod(A, boot=f"b{number}"), pod(B)), state)
        assert (asked.swaps, asked.rollout.restarts) == ({A: 1}, number)
        state = step(world(pod(A, None, ready=False, starting=True), pod(B)), asked.rollout).rollout
    made = step(world(pod(A, boot="b2"), pod(B)), state)
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert (made.rollout.asked, made.rollout.restarts) == ({}, 0), "the next roll counts anew"


def test_engines_that_end_for_other_reasons_are_not_held_against_a_draft_that_they_never_took() -> None:
    state, paused = rolling(RolloutPhase.PAUSED), {"paused": True}
    for number in range(3):
        state = step(world(pod(A, 1, boot="a"), pod(B, boot=f"b{number}"), policy=paused), state).rollout
    assert (state.phase, state.restarts) == (RolloutPhase.PAUSED, 0)


def test_a_pod_that_never_comes_back_with_a_draft_is_held_against_it_also_without_judgement() -> None:
    for phase in (RolloutPhase.CANARY, RolloutPhase.ROLLING):
        asked = step(world(pod(A, boot="b"), pod(B)), rolling(phase)).rollout
        down = [pod(A, None, ready=False, starting=True), pod(B, 1 if phase is RolloutPhase.ROLLING else 0)]
        late = NOW + timedelta(seconds=601)
        made = step(world(*down, now=late), asked)
        assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
        assert f"pod {A} did not come back with version 1" in made.rollout.message


def test_a_pod_that_was_down_before_it_could_be_asked_refuses_nothing() -> None:
    """Also not when a person vouches for the version while the pods are still seen at work with the former one."""
    policy: dict[str, Any] = {"analysis": JUDGED, "progress_deadline_seconds": 60}
    state = step(world(pod(A, boot="a"), pod(B, boot="b"), offer=1, policy=policy), RolloutStatus()).rollout
    state = step(world(pod(A, boot="a"), pod(B, boot="b"), policy=policy), state).rollout
    late: dict[str, Any] = {"now": NOW + timedelta(seconds=61), "policy": policy, "promote": 1}
    made = step(world(pod(A, boot="a"), pod(B, None, ready=False, starting=True), **late), state)
    assert made.advance is None


def test_an_edit_of_how_pods_serve_ends_a_judgement_without_blame() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    edited = step(world(pod(A, 1), pod(B), shape="other", policy=policy), canary())
    assert (edited.rollout.phase, edited.advance) == (RolloutPhase.ROLLING_BACK, None)
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": policy, "shape": "other"}
    assert step(world(pod(A, 1), **now), watching()).rollout.phase is RolloutPhase.IDLE


def watching(**more: Any) -> RolloutStatus:
    state = AnalysisStatus(**{"baseline": BASELINE, "since": NOW, "settling": True, **more})
    return rolling(RolloutPhase.WATCHING, analysis=state)


def test_a_promoted_version_that_degrades_gives_way_to_the_previous_one_everywhere_at_once() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": policy}
    first = step(world(pod(A, 1, **traffic(0)), pod(B, 1, **traffic(0)), **now), watching(failures=1)).rollout
    later = NOW + timedelta(seconds=20)
    bad = [pod(name, 1, **traffic(20, length=1.2)) for name in (A, B)]
    made = step(world(*bad, now=later, **now), first)
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert made.swaps == {}, "the decision is in the channel before any pod is asked"
    back: dict[str, Any] = {"active": 0, "epoch": 6, "policy": policy, "earned": set(), "refused": {1}, "reason": "why"}
    assert step(world(*bad, now=later, **back), made.rollout).swaps == {A: 0, B: 0}
    died_between = step(world(*bad, now=later, **back), first)
    assert (died_between.rollout.phase, died_between.rollout.message) == (RolloutPhase.ROLLING_BACK, "why")


def test_engines_that_end_with_a_promoted_version_take_it_back() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    state = watching().model_copy(update={"asked": {A: "b0", B: "b"}, "restarts": 1})
    assert step(world(pod(A, 1, boot="b0"), pod(B, 1, boot="b"), **now), state).advance is None
    made = step(world(pod(A, 1, boot="b1"), pod(B, 1, boot="b"), **now), state)
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert "2 engines ended" in made.rollout.message


def test_a_watch_does_not_end_while_a_pod_that_took_the_version_is_away() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    state = watching().model_copy(update={"asked": {A: "b", B: "b"}})
    away = [pod(A, 1, boot="b"), pod(B, None, ready=False)]
    held = step(world(*away, now=NOW + timedelta(seconds=61), **now), state)
    assert (held.rollout.phase, held.advance) == (RolloutPhase.WATCHING, None)
    back = [pod(A, 1, boot="b"), pod(B, 1, boot="new")]
    after = step(world(*back, now=NOW + timedelta(seconds=90), **now), held.rollout).rollout
    assert (after.phase, after.restarts) == (RolloutPhase.IDLE, 0), "one end is tolerated"
    again = held.rollout.model_copy(update={"restarts": 1})
    ended = step(world(*back, now=NOW + timedelta(seconds=90), **now), again)
    assert ended.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1), "the last look counts too"
    late = step(world(*away, now=NOW + timedelta(seconds=661), **now), held.rollout)
    assert late.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert "did not come back" in late.rollout.message


def test_engines_that_ended_while_nobody_looked_or_with_their_peers_are_held_against_no_version() -> None:
    policy: dict[str, Any] = {"analysis": JUDGED}
    peer = PodWindow(name=B, boot="b", version=0, live=LiveCounters())
    state = canary(pods=[peer], asked={A: "b"}).model_copy(update={"restarts": 1})
    together = step(world(pod(A, 1, boot="new"), pod(B, boot="new"), policy=policy), state)
    assert (together.rollout.phase, together.rollout.restarts) == (RolloutPhase.CANARY, 1)
    unseen = step(world(pod(A, 1, boot="new"), pod(B, boot="b"), policy=policy, resumed=True), state)
    assert (unseen.rollout.phase, unseen.rollout.restarts) == (RolloutPhase.CANARY, 1)
    alone = step(world(pod(A, 1, boot="new"), pod(B, boot="b"), policy=policy), state)
    assert alone.advance == Advance(0, ChannelReason.REFUSED, reject=1)


def test_a_pod_that_comes_up_with_a_third_version_is_brought_over_before_the_canary_goes_on() -> None:
    assert step(world(pod(A), pod(B, 7), pod(C)), rolling(RolloutPhase.CANARY)).swaps == {B: 0}


def test_a_watch_ends_in_peace_by_time_or_by_a_persons_word() -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    early = step(world(pod(A, 1), now=NOW + timedelta(seconds=59), **now), watching())
    assert early.rollout.phase is RolloutPhase.WATCHING
    over = step(world(pod(A, 1), now=NOW + timedelta(seconds=60), **now), watching())
    assert (over.rollout.phase, over.advance) == (RolloutPhase.IDLE, None)
    assert step(world(pod(A, 1), promote=1, **now), watching()).rollout.phase is RolloutPhase.IDLE


@pytest.mark.parametrize("phase", [RolloutPhase.WATCHING, RolloutPhase.IDLE])
def test_a_person_may_refuse_the_active_version_at_any_time(phase: RolloutPhase) -> None:
    now: dict[str, Any] = {"active": 1, "previous": 0, "epoch": 5, "policy": {"analysis": JUDGED}}
    made = step(world(pod(A, 1), abort=1, **now), watching().model_copy(update={"phase": phase}))
    assert made.advance == Advance(0, ChannelReason.ROLLED_BACK, reject=1)
    assert made.rollout.version == 1
    after: dict[str, Any] = {**now, "active": 0, "previous": None, "refused": {1}}
    assert step(world(pod(A, 0), abort=1, **after), RolloutStatus()).advance is None, "an old wish says no more"


def test_a_pin_moves_the_channel_and_keeps_everything_else_out() -> None:
    made = step(world(pod(A, 3), pod(B, 3), active=3, pin=1, hold=True, offer=4), RolloutStatus(epoch=7))
    assert made.advance == Advance(1, ChannelReason.PINNED)
    assert made.rollout.epoch == 8
    held: dict[str, Any] = {"active": 1, "pin": 1, "hold": True, "offer": 4, "policy": {"paused": True}}
    assert step(world(pod(A, 3), pod(B, 3), **held), made.rollout).swaps == {A: 1}, "at once: paused or not"
    rest = step(world(pod(A, 1), pod(B, 1), **held), made.rollout)
    assert (rest.rollout.phase, rest.swaps, rest.advance) == (RolloutPhase.IDLE, {}, None)


def test_a_pin_ends_a_roll_and_blames_nobody() -> None:
    to_active = step(world(pod(A, 1), pod(B), pin=0, hold=True), rolling())
    assert (to_active.rollout.phase, to_active.advance) == (RolloutPhase.ROLLING_BACK, None)
    to_rolled = step(world(pod(A, 1), pod(B), pin=1, hold=True), rolling())
    assert to_rolled.advance == Advance(1, ChannelReason.PINNED)
    third = step(world(pod(A, 1), pod(B), pin=2, hold=True), rolling())
    assert (third.rollout.phase, third.advance, third.swaps) == (RolloutPhase.ROLLING_BACK, None, {A: 0})
    stuck = rolling(RolloutPhase.ROLLING_BACK)
    assert step(world(pod(A, 1), pod(B, 1), pin=1, hold=True), stuck).advance == Advance(1, ChannelReason.PINNED)


def test_a_pin_that_cannot_be_had_holds_what_goes_on() -> None:
    assert step(world(pod(A), pod(B), offer=1, hold=True), RolloutStatus()).rollout.phase is RolloutPhase.IDLE
    assert step(world(pod(A, 1), pod(B), hold=True), rolling()).rollout.phase is RolloutPhase.PAUSED


def test_no_pod_is_swapped_while_too_many_are_not_ready_and_the_clock_stands() -> None:
    down = [pod(name, None, ready=False) for name in ("pod-x", "pod-y")]
    held = step(world(pod(A, 1), pod(B), *down), rolling())
    assert held.swaps == {}
    late: dict[str, Any] = {"now": NOW + timedelta(hours=1)}
    assert step(world(pod(A, 1), pod(B), *down, **late), held.rollout).rollout.phase is RolloutPhase.ROLLING
    assert step(world(pod(A, 1), pod(B), **late), held.rollout).swaps == {B: 1}
    assert step(world(pod(A, 1), pod(B), *down, policy={"max_unavailable": 2}), rolling()).swaps == {B: 1}
    assert step(world(pod(A, 1), *down), rolling()).advance is None, "nor promoted"
    assert step(world(pod(A), *down, offer=1), RolloutStatus()).rollout.phase is RolloutPhase.IDLE, "nor started"


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
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)
    assert "shapes differ" in made.rollout.message
    assert made.rollout.epoch == 5, "an agent that is asked for the version late has to refuse"
    back = step(world(pod(A, 1), pod(B, swap=FAILED)), made.rollout)
    assert back.swaps == {A: 0}
    assert step(world(pod(A, 0), pod(B, swap=FAILED)), back.rollout).rollout.phase is RolloutPhase.IDLE


@pytest.mark.parametrize("phase", [RolloutPhase.CANARY, RolloutPhase.ROLLING])
def test_a_swap_that_failed_for_what_is_around_the_draft_is_tried_again(phase: RolloutPhase) -> None:
    failed = FAILED.model_copy(update={"transient": True, "error": "get checkpoints: EndpointConnectionError"})
    held = step(world(pod(A, swap=failed), pod(B)), rolling(phase))
    assert (held.rollout.phase, held.advance, held.swaps) == (phase, None, {B: 1})
    if phase is RolloutPhase.CANARY:
        assert "tries again: get checkpoints: EndpointConnectionError" in held.rollout.message
    both = step(world(pod(A, swap=failed), pod(B, 1)), rolling(RolloutPhase.ROLLING))
    assert both.swaps == {}, "not at once"
    later = NOW + timedelta(seconds=6)
    assert step(world(pod(A, swap=failed), pod(B, 1), now=later), rolling(RolloutPhase.ROLLING)).swaps == {A: 1}
    end = step(world(pod(A, swap=failed), pod(B, 1), now=NOW + timedelta(seconds=601)), rolling())
    assert (end.rollout.phase, end.advance) == (RolloutPhase.ROLLING_BACK, None), "it may be offered again"


def test_the_failure_of_an_earlier_roll_is_not_held_against_this_one() -> None:
    old = FAILED.model_copy(update={"finished": NOW - timedelta(seconds=1)})
    assert step(world(pod(A, swap=old), pod(B)), rolling(RolloutPhase.CANARY)).rollout.phase is RolloutPhase.CANARY


def test_different_weights_under_one_version_are_a_failure() -> None:
    made = step(world(pod(A, 1), pod(B, 1, checksum="other")), rolling())
    assert made.rollout.phase is RolloutPhase.ROLLING_BACK
    assert made.advance == Advance(0, ChannelReason.REFUSED, reject=1)


@pytest.mark.parametrize("set_back", [timedelta(seconds=30), timedelta(days=1)])
def test_a_clock_that_is_set_back_delays_nothing(set_back: timedelta) -> None:
    now: dict[str, Any] = {"now": NOW - set_back, "policy": {"analysis": JUDGED}}
    stored = rolling(RolloutPhase.CANARY, analysis=AnalysisStatus(baseline=BASELINE, since=NOW, missing_since=NOW))
    again = step(world(pod(A, 1), pod(B), **now), stored).rollout
    assert again.analysis is not None
    assert again.started is not None
    assert again.progressed is not None
    assert again.analysis.since is not None
    assert max(again.started, again.progressed, again.analysis.since) <= NOW - set_back
    failed = pod(B, swap=FAILED.model_copy(update={"finished": NOW - set_back}))
    assert step(world(pod(A, 1), failed, **now), stored).advance == Advance(0, ChannelReason.REFUSED, reject=1)
    stray = pod(A, 2, swap=SwapStatus(phase=SwapPhase.FAILED, version=0, finished=NOW))
    assert step(world(stray, **now), RolloutStatus()).swaps == {A: 0}


def test_pods_that_are_gone_are_forgotten() -> None:
    """Else the windows of pods long gone leave no room for those that serve."""
    gone = [PodWindow(name=f"pod-{n}", boot="b", version=1, live=LiveCounters()) for n in range(MAX_PODS_SHOWN)]
    state = canary(pods=gone, asked={window.name: "b" for window in gone})
    now = step(world(pod(A, 1), pod(B), policy={"analysis": JUDGED}), state).rollout
    assert now.analysis is not None
    assert {window.name for window in now.analysis.pods} == {A, B}
    assert set(now.asked) == {A}


def test_no_progress_rolls_back_but_time_without_an_operator_does_not_count() -> None:
    late = NOW + timedelta(seconds=601)
    assert step(world(pod(A, 1), pod(B), now=late), rolling()).rollout.phase is RolloutPhase.ROLLING_BACK
    assert step(world(pod(A, 1), pod(B), now=late, resumed=True), rolling()).rollout.phase is RolloutPhase.ROLLING


def test_a_vouched_canary_has_a_deadline_too() -> None:
    late = NOW + timedelta(seconds=601)
    rollout = rolling(RolloutPhase.CANARY, analysis=AnalysisStatus(), asked={A: "boot"})
    gone = pod(A, ready=False)
    assert step(world(gone, pod(B), now=late, promote=1), rollout).rollout.phase is RolloutPhase.ROLLING_BACK


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
