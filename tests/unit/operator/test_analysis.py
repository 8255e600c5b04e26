"""Live judgement: what it takes for a verdict, and what must not be one."""

from __future__ import annotations

import math
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
POLICY = Analysis(settle_seconds=20, interval_seconds=10, min_requests=50)
STEPS = 3
ROUNDS = 40
"""Rounds of a request."""


def counters(requests: int, length: float, **more: int) -> LiveCounters:
    rounds = requests * ROUNDS
    return LiveCounters(requests=requests, verify_rounds=rounds, answer_tokens=round(rounds * length), **more)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def outcome(new: LiveCounters, old: LiveCounters, *, beside: bool = True) -> Outcome:
    return compare(new, old, Analysis(), STEPS, beside=beside)[0]


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


def paced(*milliseconds: float) -> LiveCounters:
    """Requests with these mean times between tokens, and SGLang's buckets around them."""
    edges = [2, 4, 6, 8, 10, 15, 20, 25, 30, 35, 40, 60, 80, 100, 200, 400, 600, 800, 1000, 2000, 4000, 6000, 8000]
    above = [next((edge for edge in edges if gap <= edge), gap) for gap in milliseconds]
    return counters(
        len(milliseconds),
        2.0,
        gaps=len(milliseconds),
        gap_milliseconds=round(sum(milliseconds)),
        gap_squares=math.ceil(sum(edge * edge for edge in above)),
    )


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


def taken_back(rng: random.Random, *, slower: float = 1.0, busy: bool = True, windows: int = 22) -> bool:
    """A canary and three peers in windows of 15 s; each machine is busy with something else for 5 to 15 s a minute.

    Requests' times are heavy-tailed, and all that end in a busy phase are three times slower.
    """

    def side(pods: int, factor: float) -> LiveCounters:
        gaps: list[float] = []
        for _ in range(pods):
            share = rng.uniform(5, 15) / 15 if busy and rng.random() < 0.25 else 0.0
            gaps += [factor * rng.lognormvariate(3.0, 0.7) * (3 if rng.random() < share else 1) for _ in range(60)]
        return paced(*gaps)

    state = AnalysisStatus(baseline=counters(1000, 2.0), since=NOW)
    total, pods = [LiveCounters(), LiveCounters()], {}
    for window in range(windows + 1):
        pods = {name: Live("b", version, total[index]) for index, (name, version) in enumerate((("c", 1), ("p", 0)))}
        mine, peers = {"c": pods["c"]}, {"p": pods["p"]}
        state = judge(state, mine, peers, 1, POLICY, steps=STEPS, now=at(15 * window))
        total = [
            LiveCounters(**{k: getattr(old, k) + getattr(more, k) for k in LiveCounters.model_fields})
            for old, more in zip(total, (side(1, slower), side(3, 1.0)), strict=True)
        ]
    return state.failures > Analysis().failure_limit


def test_the_noise_of_busy_machines_takes_no_draft_back_and_a_slow_one_goes() -> None:
    """Judged for five and a half minutes, as a canary, a roll and a watch are."""
    rng = random.Random(0)  # noqa: S311 - a simulation
    assert sum(taken_back(rng) for _ in range(60)) == 0
    assert all(taken_back(rng, slower=4.0, busy=False, windows=8) for _ in range(10))
    assert all(taken_back(rng, slower=4.0) for _ in range(10))


def test_clients_that_give_up_are_bad_when_they_are_many_more() -> None:
    old = counters(100, 2.0)
    assert outcome(counters(100, 2.0, aborted=3), old) is Outcome.GOOD, "some clients always go away"
    assert outcome(counters(100, 2.0, aborted=40), old) is Outcome.BAD
    assert outcome(counters(100, 2.0, aborted=40), counters(100, 2.0, aborted=35)) is Outcome.GOOD


def live(seconds: float, length: float = 2.0, *, version: int = 1, boot: str = "b", rate: int = 10) -> Live:
    return Live(boot, version, counters(int(seconds * rate), length))


def judged(state: AnalysisStatus, seconds: float, mine: Live, peer: Live | None = None) -> AnalysisStatus:
    peers = {} if peer is None else {"peer": peer}
    return judge(state, {"canary": mine}, peers, 1, POLICY, steps=STEPS, now=at(seconds))


def begun(**more: object) -> AnalysisStatus:
    """A window that begins at 0."""
    state = AnalysisStatus.model_validate({"baseline": counters(1000, 2.5), "since": NOW, "settling": True, **more})
    return judged(state, 0, live(0), live(0, version=0))


@pytest.mark.parametrize(("with_peer", "expected"), [(True, (1, 0)), (False, (0, 1))])
def test_traffic_that_shifts_for_all_is_not_held_against_the_canary(with_peer: bool, expected: tuple[int, int]) -> None:
    state = judged(begun(), 20, live(20, 1.3), live(20, 1.3, version=0) if with_peer else None)
    assert (state.successes, state.failures) == expected


def test_peers_with_little_traffic_are_waited_for_and_not_replaced_by_the_past() -> None:
    state = judged(begun(), 20, live(20, 1.3), live(20, 1.3, version=0, rate=1))
    assert (state.successes, state.failures) == (0, 0)


def test_an_engine_that_ended_is_compared_with_itself_only() -> None:
    state = judged(begun(), 20, live(1, 1.0, boot="second"))
    assert (state.successes, state.failures) == (0, 0), "counters of another boot say nothing of the draft"


def test_a_pod_out_of_sight_keeps_its_window() -> None:
    state = judge(begun(), {}, {}, 1, POLICY, steps=STEPS, now=at(8))
    assert judged(state, 20, live(20, 2.6), live(20, 2.5, version=0)).successes == 1


def test_the_first_window_begins_when_requests_of_the_former_draft_have_ended() -> None:
    state = AnalysisStatus(baseline=counters(1000, 2.0))
    for seconds in (0, 19):
        state = judged(state, seconds, live(seconds, 1.0))
        assert (state.successes, state.failures, state.settling) == (0, 0, True)
    state = judged(state, 20, live(20, 1.0))
    grown = LiveCounters(requests=400, verify_rounds=16_000, answer_tokens=8_000 + 8_000 * 2)
    assert judged(state, 30, Live("b", 1, grown)).successes == 1


def test_a_baseline_takes_an_interval_and_enough_requests() -> None:
    def seen(state: AnalysisStatus, seconds: float, requests: int) -> AnalysisStatus:
        pods = {"a": Live("b", 0, counters(requests, 2.0))}
        return measure_baseline(state, pods, 0, POLICY, at(seconds))

    state = seen(AnalysisStatus(shape="s"), 0, 1000)
    assert seen(state, 5, 5000).baseline is None
    assert seen(state, 50, 1049).baseline is None
    assert seen(state, 50, 1200) == AnalysisStatus(shape="s", baseline=counters(200, 2.0))
