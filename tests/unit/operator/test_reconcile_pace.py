"""The time until the next reconcile: short after a change, and longer while what is under way waits."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
)
from aurora_operator import reconciler as reconciler_module
from aurora_operator.act.actor import ExecutionResult
from aurora_operator.observe.observed import JobView, Observed, StoreView
from aurora_operator.plan.candidate.recalled_replica import delayed_message
from aurora_operator.reconciler import (
    BUSY_POLL_SECONDS,
    QUIET_SHARE,
    REST_JITTER,
    REST_POLL_SECONDS,
    WATCHFUL_POLL_SECONDS,
)
from aurora_protocol.evidence_records import VerdictKind
from tests.unit.operator.test_reconciler import REFUSED, FakeActor, FakeObserver, reconciler_at
from tests.unit.operator.worlds import NOW, evidence, observed, spec, store


@dataclass
class Clock:
    """A monotonic clock that a test moves on."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(reconciler_module, "time", made)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    return made


class WrittenStatus(FakeActor):
    """Lets the observer see the status that a plan wrote."""

    def __init__(self, observer: FakeObserver) -> None:
        super().__init__()
        self._observer = observer

    async def act(self, *parts: Any) -> ExecutionResult:
        if parts[0].status is not None:
            self._observer.observed = replace(self._observer.observed, status=parts[0].status)
        return await super().act(*parts)


async def delays_of(world: Observed, clock: Clock, seconds: float) -> list[float]:
    """The delays of all reconciles within ``seconds``, while nothing changes but what the plan itself decides."""
    observer = FakeObserver(world)
    reconciler, delays, end = reconciler_at(observer, WrittenStatus(observer)), [], clock.seconds + seconds
    while clock.seconds < end:
        delays.append(await reconciler.reconcile(woken=False))
        clock.seconds += delays[-1]
    return delays


NO_DRAFT = observed(store=StoreView(), pods=(), status=SpeculatorStatus())
MEASURED = CandidateStatus(version=1, phase=CandidatePhase.VALIDATING, job="chat-validate-v1-1", since=NOW)
PENDING = JobView(name="chat-validate-v1-1", version=1, attempt=1, waiting="Unschedulable")
MEASURING = observed(store=store(0, 1), status=SpeculatorStatus(candidate=MEASURED), jobs=(PENDING,))
LENT = replace(
    MEASURING,
    spec=spec(serving={"replicas": 2}, validation={"measureOn": "Replica"}),
    status=SpeculatorStatus(candidate=MEASURED.model_copy(update={"pod": "chat-b"})),
)
PASSED = CandidateStatus(version=1, phase=CandidatePhase.VALIDATED)
CANARY = observed(
    store=store(0, 1, evidence=(evidence(1, VerdictKind.PASS),)), status=SpeculatorStatus(candidate=PASSED)
)
"""Its roll begins, and waits for traffic."""


@pytest.mark.parametrize("world", [NO_DRAFT, MEASURING], ids=["no draft", "measuring"])
async def test_what_may_take_days_comes_to_rest(clock: Clock, world: Observed) -> None:
    """A trainer in a queue, or a measurement without a free GPU. Pods, Jobs and the store wake the loop."""
    delays = await delays_of(world, clock, 600)
    assert delays[:5] == [BUSY_POLL_SECONDS] * 5
    assert delays == sorted(delays)
    assert len(delays) < 50, "300 with 2 s each"
    late = await delays_of(world, clock, 3600)
    assert set(late[-10:]) == {(1 + REST_JITTER) * REST_POLL_SECONDS}


@pytest.mark.parametrize("world", [LENT, CANARY], ids=["measuring on a replica", "canary"])
async def test_what_only_agents_tell_is_looked_at_every_15_seconds_at_least(clock: Clock, world: Observed) -> None:
    """In a roll longer pauses would stop its deadlines (``observed_time.MAX_GAP``)."""
    delays = await delays_of(world, clock, 3600)
    assert delays[:5] == [BUSY_POLL_SECONDS] * 5
    assert set(delays[-10:]) == {WATCHFUL_POLL_SECONDS}


async def test_a_deadline_is_met_late_by_at_most_a_tenth_of_its_length(clock: Clock) -> None:
    for world in (NO_DRAFT, MEASURING, LENT, CANARY):
        waited = 0.0
        for delay in await delays_of(world, clock, 3600):
            assert delay <= max(BUSY_POLL_SECONDS, QUIET_SHARE * waited + 1e-6)
            waited += delay


async def test_a_change_of_the_decided_status_makes_the_reconciles_frequent_again(clock: Clock) -> None:
    observer = FakeObserver(NO_DRAFT)
    reconciler = reconciler_at(observer, WrittenStatus(observer))
    await reconciler.reconcile()
    clock.seconds += 3600
    assert await reconciler.reconcile(woken=False) > WATCHFUL_POLL_SECONDS
    observer.observed = replace(observer.observed, pods=observed().pods)
    assert await reconciler.reconcile() == BUSY_POLL_SECONDS


async def test_a_failed_candidate_is_looked_at_when_its_retry_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    rest = (1 + REST_JITTER) * REST_POLL_SECONDS
    for attempt, waited, expected in ((1, 10, 20), (7, 0, rest), (7, 1790, 10), (7, 3600, rest)):
        since = datetime.now(UTC) - timedelta(seconds=waited)
        failed = CandidateStatus(version=1, phase=CandidatePhase.FAILED, attempt=attempt, since=since, job="j")
        pinned = observed(
            spec=spec(serving={"replicas": 2}, rollout={"pin": 0}),
            store=store(0, 1),
            status=SpeculatorStatus(candidate=failed),
        )
        delay = await reconciler_at(FakeObserver(pinned)).reconcile(woken=False)
        assert delay == pytest.approx(expected, abs=2)


async def test_a_candidate_whose_replica_was_recalled_is_looked_at_when_the_next_may_be_lent() -> None:
    recalled = CandidateStatus(
        version=1,
        phase=CandidatePhase.VALIDATING,
        attempt=2,
        recalled_attempts=1,
        since=datetime.now(UTC) - timedelta(seconds=10),
        job="j",
    )
    recalled = recalled.model_copy(update={"message": delayed_message(recalled, "0 of the 1 other pods are ready")})
    waiting = observed(
        spec=spec(serving={"replicas": 2}, validation={"measureOn": "Replica"}),
        store=store(0, 1),
        status=SpeculatorStatus(candidate=recalled),
    )
    reconciler = reconciler_at(FakeObserver(waiting))
    reconciler._changed_seconds -= 3600
    assert await reconciler.reconcile(woken=False) <= 21


async def test_a_refused_write_is_tried_at_once_after_a_change_in_the_cluster() -> None:
    actor = FakeActor(result=REFUSED)
    reconciler = reconciler_at(FakeObserver(observed()), actor)
    for woken in (False, True, False):
        await reconciler.reconcile(woken=woken)
    assert actor.tried_now == 1


async def test_a_taken_name_is_looked_at_again_when_its_next_write_is_due() -> None:
    taken = ExecutionResult(name_taken=("Service chat",), retry_seconds=40)
    reconciler = reconciler_at(FakeObserver(observed()), FakeActor(result=taken))
    assert await reconciler.reconcile() == BUSY_POLL_SECONDS, "the status tells it"
    assert await reconciler.reconcile(woken=False) == 40


async def test_the_agents_are_asked_in_every_reconcile_while_something_is_under_way() -> None:
    swapping = observed(pods=[])
    observer = FakeObserver(swapping)
    reconciler = reconciler_at(observer)
    assert await reconciler.reconcile() == BUSY_POLL_SECONDS
    assert await reconciler.reconcile(woken=False) == BUSY_POLL_SECONDS
    assert observer.asked == [True, True]


async def test_the_delay_begins_anew_after_a_write_that_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = FakeActor(result=REFUSED)
    reconciler = reconciler_at(FakeObserver(observed()), actor)
    for result in (REFUSED, REFUSED, REFUSED, ExecutionResult()):
        actor.result = result
        await reconciler.reconcile(woken=False)
    actor.result = REFUSED
    assert await reconciler.reconcile(woken=False) == BUSY_POLL_SECONDS


async def test_a_paused_roll_a_silent_agent_and_a_store_that_is_away_are_watched_closely() -> None:
    paused = RolloutStatus(phase=RolloutPhase.PAUSED, version=1, epoch=1)
    silent = replace(observed(), pods=tuple(replace(pod, agent=None) for pod in observed().pods))
    for world in (
        observed(status=SpeculatorStatus(rollout=paused)),
        observed(store=StoreView(reason="Unreachable", error="no answer")),
    ):
        assert await reconciler_at(FakeObserver(world)).reconcile() <= WATCHFUL_POLL_SECONDS
    assert await reconciler_at(FakeObserver(silent)).reconcile() <= WATCHFUL_POLL_SECONDS


async def test_a_secret_that_is_due_ends_the_rest_early() -> None:
    assert await reconciler_at(FakeObserver(observed(), seconds_until_due=7.0)).reconcile() == 7.0
    assert await reconciler_at(FakeObserver(observed(), seconds_until_due=0.0)).reconcile() == BUSY_POLL_SECONDS
