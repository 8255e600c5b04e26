"""Live analysis: when a window is judged, and what must not count as a judgement."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aurora_api.v1alpha1.status import MAX_PODS_SHOWN
from aurora_operator.plan.rollout.analysis import PodCounters, judge, measure_baseline
from aurora_operator.plan.rollout.roll import AnalysisState
from aurora_operator.plan.rollout.world import AnalysisPolicy
from tests.unit.operator.counters import counters

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = AnalysisPolicy(settle_seconds=20, interval_seconds=10, min_requests=50)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def live(seconds: float, length: float = 2.0, *, version: int = 1, boot: str = "b", rate: int = 10) -> PodCounters:
    return PodCounters(boot, version, counters(int(seconds * rate), length))


def judged(state: AnalysisState, seconds: float, canary: PodCounters, peer: PodCounters | None = None) -> AnalysisState:
    peers = {} if peer is None else {"peer": peer}
    return judge(state, {"canary": canary}, peers, 1, POLICY, now=at(seconds))


def begun(**more: object) -> AnalysisState:
    """The analysis with a window that begins at 0."""
    state = AnalysisState.model_validate({"baseline": counters(1000, 2.5), "window_begins": NOW, **more})
    return judged(state, 0, live(0), live(0, version=0))


@pytest.mark.parametrize(("with_peer", "expected"), [(True, (1, 0)), (False, (0, 1))])
def test_a_shift_of_the_traffic_for_all_pods_does_not_count_against_the_canary(
    with_peer: bool, expected: tuple[int, int]
) -> None:
    state = judged(begun(), 20, live(20, 1.3), live(20, 1.3, version=0) if with_peer else None)
    assert (state.good_windows, state.bad_windows) == expected


def test_peers_with_little_traffic_are_waited_for_and_not_replaced_by_the_baseline() -> None:
    state = judged(begun(), 20, live(20, 1.3), live(20, 1.3, version=0, rate=1))
    assert (state.good_windows, state.bad_windows) == (0, 0)


def test_a_window_is_judged_once_it_is_old_enough_however_much_traffic_it_holds() -> None:
    for seconds, good in ((9, 0), (10, 1)):
        canary, peer = live(seconds, rate=100), live(seconds, version=0, rate=100)
        assert judged(begun(), seconds, canary, peer).good_windows == good


def test_counters_of_an_earlier_engine_start_are_not_compared() -> None:
    state = judged(begun(), 20, live(20, 1.0, boot="second"))
    assert (state.good_windows, state.bad_windows) == (0, 0), "counters of another boot say nothing of the draft"


def test_a_pod_out_of_sight_keeps_its_window() -> None:
    state = judge(begun(), {}, {}, 1, POLICY, now=at(8))
    assert judged(state, 20, live(20, 2.6), live(20, 2.5, version=0)).good_windows == 1


@pytest.mark.parametrize(("canaries", "peers"), [(1, 99), (40, 32), (100, 1), (20, 20)])
def test_any_number_of_pods_is_compared_with_its_peers(canaries: int, peers: int) -> None:
    """The state has room for 32 windows of each side. Without windows of both sides, nothing is ever judged."""

    def fleet(seconds: float, length: float) -> AnalysisState:
        canary = {f"a{n}": live(seconds, length) for n in range(canaries)}
        others = {f"b{n}": live(seconds, 2.5, version=0) for n in range(peers)}
        return judge(state, canary, others, 1, POLICY, now=at(seconds))

    state = AnalysisState(baseline=counters(1000, 2.0), window_begins=NOW)
    state = fleet(0, 2.5)
    assert len(state.windows) == min(canaries, MAX_PODS_SHOWN // 2) + min(peers, MAX_PODS_SHOWN // 2)
    assert fleet(20, 2.6).good_windows == 1
    assert fleet(20, 1.3).bad_windows == 1


def test_the_first_window_begins_when_requests_of_the_former_draft_have_ended() -> None:
    state = AnalysisState(baseline=counters(1000, 2.0))
    for seconds in (0, 19):
        state = judged(state, seconds, live(seconds, 1.0))
        assert (state.good_windows, state.bad_windows, state.windows) == (0, 0, [])
    state = judged(state, 20, live(20, 1.0))
    grown = counters(200, 1.0).plus(counters(200, 2.0))
    assert judged(state, 30, PodCounters("b", 1, grown)).good_windows == 1


def seen(state: AnalysisState, seconds: float, requests: int) -> AnalysisState:
    return measure_baseline(state, {"a": PodCounters("b", 0, counters(requests, 2.0))}, 0, POLICY, at(seconds))


def test_a_baseline_takes_an_interval_and_enough_requests() -> None:
    state = seen(AnalysisState(serving_digest="s"), 0, 1000)
    assert seen(state, 5, 5000).baseline is None
    assert seen(state, 50, 1049).baseline is None
    assert seen(state, 50, 1200) == AnalysisState(serving_digest="s", baseline=counters(200, 2.0))
