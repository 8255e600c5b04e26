"""One reconcile: whose the speculator is, what a bad spec changes, what metrics show, and when to reconcile again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import pytest
from prometheus_client import REGISTRY

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    OperatorIdentity,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_operator import metrics
from aurora_operator import reconciler as reconciler_module
from aurora_operator.act.actor import ExecutionResult
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import Gone, KubernetesError, Recreated
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import Observed, RefusedJob, StoreView
from aurora_operator.observe.observer import Snapshot
from aurora_operator.observe.stored_resource import status_of
from aurora_operator.plan import Plan
from aurora_operator.reconciler import (
    BUSY_POLL_SECONDS,
    QUIET_SHARE,
    REST_JITTER,
    REST_POLL_SECONDS,
    WATCHFUL_POLL_SECONDS,
    ObservedTime,
    Reconciler,
)
from aurora_operator.speculator_figures import FIGURES
from aurora_protocol.evidence_records import VerdictKind
from tests.unit.operator.fake_api import UNAVAILABLE, FakeApi
from tests.unit.operator.worlds import CONFIG, MINIMAL, NOW, OWNER, evidence, observed, spec, store

KEY = (OWNER.namespace, OWNER.name)
READY = Condition(type=ConditionType.READY, status=ConditionStatus.TRUE, reason="Serving", last_transition_time=NOW)
SERVING = READY.model_copy(update={"type": ConditionType.SERVING_READY})
STATUS = SpeculatorStatus(conditions=[READY, SERVING], active=VersionStatus(version=0), operator=CONFIG.identity)
ELSEWHERE = OperatorIdentity(installation="elsewhere/aurora-operator")
UNUSABLE = MINIMAL | {"target": {"model": 7}}
LONGEST_REST = (1 + REST_JITTER) * REST_POLL_SECONDS


@dataclass
class Clock:
    """A monotonic clock that a test moves on."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class FakeStore:
    """A store of which a test says when a look is due, and whether the look finds news."""

    due_seconds: float = inf
    news: bool = False
    looks: int = 0
    resets: int = 0

    async def has_news(self) -> bool:
        self.looks += 1
        return self.news

    def seconds_until_due(self) -> float:
        return self.due_seconds

    def read_next(self) -> None:
        self.resets += 1


@dataclass
class FakeObserver:
    """Observes what a test sets."""

    api: FakeApi
    observed: Observed
    store: FakeStore = field(default_factory=FakeStore)

    async def speculator(self) -> Object:
        return self.api.objects["AuroraSpeculator", OWNER.name]

    async def observe(self, stored: Object) -> Snapshot:
        return Snapshot(self.observed, {}, "token")


@dataclass
class FakeActor:
    """Does nothing but what a test sets. Lets the observer see the status that a plan wrote."""

    observer: FakeObserver
    result: ExecutionResult = field(default_factory=ExecutionResult)
    takes: Callable[[], object] = lambda: None
    acts: int = 0

    async def act(self, plan: Plan, *_: Any) -> ExecutionResult:
        self.acts += 1
        self.takes()
        if plan.status is not None:
            self.observer.observed = replace(self.observer.observed, status=plan.status)
        return self.result


class Rig:
    """A reconciler, a fake API server with its speculator, and the Events that it posts."""

    def __init__(self, status: SpeculatorStatus = STATUS, spec: Any = MINIMAL) -> None:
        FIGURES.forget(*KEY)
        metrics.forget(*KEY)
        self.api, self.events, self.fleet = FakeApi(), list[str](), Fleet()
        self.put(spec, status)
        no_agents: Any = None
        self.reconciler = Reconciler(self.api, no_agents, CONFIG, self.fleet, *KEY)
        self.reconciler._events._post = lambda *_, reason, **__: self.events.append(reason)

    @classmethod
    def of(cls, world: Observed, result: ExecutionResult = ExecutionResult()) -> Rig:  # noqa: B008 - immutable
        """A reconciler that observes ``world``, and whose acts end with ``result``."""
        made = cls()
        made.observer = FakeObserver(made.api, replace(world, status=made.named(world.status)))
        made.actor = FakeActor(made.observer, result)
        made.reconciler._observer = made.observer  # type: ignore[assignment]
        made.reconciler._actor = made.actor  # type: ignore[assignment]
        return made

    observer: FakeObserver
    actor: FakeActor

    @staticmethod
    def named(status: SpeculatorStatus) -> SpeculatorStatus:
        return status.model_copy(update={"operator": CONFIG.identity})

    def put(self, spec: Any, status: SpeculatorStatus, **metadata: Any) -> None:
        identity = {"namespace": OWNER.namespace, "name": OWNER.name, "uid": OWNER.uid, **metadata}
        body = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        self.api.put({"kind": "AuroraSpeculator", "metadata": identity, "spec": spec, "status": body})

    @property
    def status(self) -> SpeculatorStatus:
        return status_of(self.api.objects["AuroraSpeculator", OWNER.name])

    async def reconcile(self, *, woken: bool = True) -> float:
        return await self.reconciler.reconcile(woken=woken)


def fail() -> None:
    raise UNAVAILABLE


def shown(metric: str, **labels: str) -> float | None:
    """The speculator's value of a metric of this process."""
    labels |= {"namespace": OWNER.namespace, "name": OWNER.name}
    return REGISTRY.get_sample_value(f"aurora_speculator_{metric}", labels)


def yielded() -> float | None:
    return REGISTRY.get_sample_value("aurora_operator_yielded_speculators")


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(reconciler_module, "time", made)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    return made


async def test_a_spec_that_cannot_be_used_is_reported_once_and_changes_nothing_else() -> None:
    rig = Rig(spec=UNUSABLE)
    assert await rig.reconcile() > WATCHFUL_POLL_SECONDS, "a change of the spec wakes the task"
    assert rig.api.writes == ["apply AuroraSpeculator chat/status"]
    conditions = {condition.type: condition for condition in rig.status.conditions}
    invalid = conditions[ConditionType.STALLED]
    assert (invalid.status, invalid.reason) == (ConditionStatus.TRUE, "InvalidSpec")
    assert "target.model" in invalid.message
    assert conditions[ConditionType.READY].status is ConditionStatus.FALSE
    assert conditions[ConditionType.SERVING_READY] == SERVING, "the pods serve as before"
    await rig.reconcile()
    assert len(rig.api.writes) == 1
    assert rig.events == ["InvalidSpec"]
    assert rig.fleet.view(("team", "another")).restarting == 0


async def test_the_second_installation_yields_and_says_so_and_a_person_decides() -> None:
    rig = Rig(STATUS.model_copy(update={"operator": ELSEWHERE}), UNUSABLE)
    for _ in range(3):
        assert await rig.reconcile() > WATCHFUL_POLL_SECONDS
    assert (rig.api.writes, rig.events, yielded()) == ([], ["OperatorYielded"], 1)
    assert rig.api.calls == ["get AuroraSpeculator chat"] * 3, "it asks no agent and reads no store"
    rig.put(UNUSABLE, STATUS.model_copy(update={"operator": None}))
    await rig.reconcile()
    assert (rig.status.operator, yielded()) == (CONFIG.identity, 0)


async def test_a_speculator_that_another_installation_takes_is_shown_no_more() -> None:
    rig = Rig.of(observed())
    await rig.reconcile()
    assert shown("last_reconcile_timestamp_seconds") is not None
    rig.put(MINIMAL, STATUS.model_copy(update={"operator": ELSEWHERE}))
    rig.observer.store.due_seconds = 0
    assert await rig.reconcile() > WATCHFUL_POLL_SECONDS, "its store is no concern of ours, either"
    assert shown("last_reconcile_timestamp_seconds") is None, "a stale time would alert"
    assert shown("condition", type="Ready") is None


DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z"}


async def test_a_speculator_that_is_deleted_is_gone_and_so_is_one_that_was_created_again() -> None:
    """The former reconciler's keys, epochs and backoffs must not meet the new speculator."""
    for metadata, error in (
        (DELETED, Gone),
        (DELETED | {"finalizers": ["example.org/theirs"]}, Gone),
        ({"uid": "another"}, Recreated),
    ):
        rig = Rig(spec=UNUSABLE)
        await rig.reconcile()
        rig.api.calls.clear()
        rig.put(UNUSABLE, STATUS, **metadata)
        with pytest.raises(error) as raised:
            await rig.reconcile()
        assert raised.type is error
        assert rig.api.writes == []
        assert shown("last_reconcile_timestamp_seconds") is None
    rig.api.remove("AuroraSpeculator", OWNER.name)
    with pytest.raises(Gone):
        await rig.reconcile()


DELETES = MINIMAL | {"store": MINIMAL["store"] | {"deletionPolicy": "Delete"}}


async def test_our_finalizer_comes_before_anything_is_stored() -> None:
    rig = Rig.of(observed())
    rig.put(DELETES, STATUS)
    rig.api.faults["patch AuroraSpeculator"] = KubernetesError("denied", 403)
    with pytest.raises(KubernetesError):
        await rig.reconcile()
    assert rig.actor.acts == 0
    rig.api.faults.clear()
    await rig.reconcile()
    assert rig.api.objects["AuroraSpeculator", OWNER.name]["metadata"]["finalizers"] == [FINALIZER]
    rig.put(MINIMAL, STATUS, finalizers=[FINALIZER])
    await rig.reconcile()
    assert rig.api.objects["AuroraSpeculator", OWNER.name]["metadata"]["finalizers"] == []


async def test_our_finalizer_is_removed_and_then_the_speculator_is_gone() -> None:
    """Its policy is Retain, so nothing is deleted in the store. Only its deletion is shown meanwhile."""
    rig = Rig()
    rig.put(MINIMAL, STATUS, **DELETED, finalizers=[FINALIZER, "example.org/theirs"])
    await rig.reconcile()
    assert rig.api.writes == ["patch AuroraSpeculator chat"]
    assert shown("deletion_timestamp_seconds") == NOW.timestamp()
    assert (shown("condition", type="Ready"), shown("last_reconcile_timestamp_seconds")) == (None, None)
    with pytest.raises(Gone):
        await rig.reconcile()


async def test_a_restarted_operator_shows_the_stored_status_although_its_reconciles_fail() -> None:
    """Otherwise the alert about a condition would end with each restart of an operator that cannot go on."""
    rig = Rig()
    rig.api.faults["list"] = UNAVAILABLE
    began = set[float | None]()
    for _ in range(2):
        with pytest.raises(KubernetesError):
            await rig.reconcile()
        assert shown("condition", type="Ready") == 1
        began.add(shown("last_reconcile_timestamp_seconds"))
    assert len(began - {None}) == 1, "no reconcile has succeeded since the start"


async def test_the_whole_store_is_read_again_after_an_agent_has_seen_a_higher_epoch() -> None:
    rig = Rig.of(observed())
    await rig.reconcile()
    assert rig.observer.store.resets == 0
    rig.actor.result = ExecutionResult(refused_by_epoch=7)
    await rig.reconcile()
    assert rig.observer.store.resets == 1


async def test_the_next_plan_knows_what_an_act_found_out(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[Observed, timedelta]]()

    def recorded(world: Observed, config: Any, now: datetime, status_age: timedelta) -> Plan:
        seen.append((world, status_age))
        return Plan(decisions=("Promoted",))

    counted = list[tuple[str, ...]]()
    monkeypatch.setattr(FIGURES, "count_decisions", lambda *parts: counted.append(parts[-1]))
    monkeypatch.setattr(reconciler_module, "plan", recorded)
    rig = Rig.of(observed())
    await rig.reconcile()
    found = ExecutionResult(
        refused_by_epoch=7,
        apply_errors=("Service chat: no",),
        refused_job=RefusedJob("j", "no"),
        name_taken=("Secret chat-keys",),
        wrote_status=True,
    )
    rig.actor.result = found
    for _ in range(2):
        await rig.reconcile()
    (_, _), (_, former_age), (world, age) = seen
    for name in ("refused_by_epoch", "apply_errors", "refused_job", "name_taken"):
        assert getattr(world, name) == getattr(found, name)
    assert (former_age, age) == (timedelta(seconds=clock.seconds), timedelta()), "the status was written"
    assert counted == [("Promoted",)] * 3


async def delays_of(rig: Rig, clock: Clock, seconds: float) -> list[float]:
    """The delays of all reconciles within ``seconds``, while nothing changes but what the plan itself decides."""
    delays, end = list[float](), clock.seconds + seconds
    while clock.seconds < end:
        delays.append(await rig.reconcile(woken=False))
        clock.seconds += delays[-1]
    return delays


NO_DRAFT = observed(store=StoreView(), pods=(), status=SpeculatorStatus())
PASSED = SpeculatorStatus(candidate=CandidateStatus(version=1, phase=CandidatePhase.VALIDATED))
CANARY = observed(store=store(0, 1, evidence=(evidence(1, VerdictKind.PASS),)), status=PASSED)
"""Its roll begins, and waits for traffic."""
REFUSED = ExecutionResult(apply_errors=("Service chat: forbidden",))


async def test_what_may_take_days_comes_to_rest(clock: Clock) -> None:
    """A trainer in a queue. Pods and the store wake the task."""
    delays = await delays_of(Rig.of(NO_DRAFT), clock, 12 * 3600)
    assert delays[:5] == [BUSY_POLL_SECONDS] * 5
    waited = 0.0
    for delay in delays:
        assert delay <= max(BUSY_POLL_SECONDS, QUIET_SHARE * waited + 1e-6), "late by at most a tenth"
        waited += delay
    assert set(delays[-10:]) == {LONGEST_REST}


async def test_a_roll_is_looked_at_every_15_seconds_at_least(clock: Clock) -> None:
    """Only agents tell how it goes, and longer pauses would stop its deadlines (``MAX_GAP``)."""
    delays = await delays_of(Rig.of(CANARY), clock, 3600)
    assert delays[:5] == [BUSY_POLL_SECONDS] * 5
    assert set(delays[-10:]) == {WATCHFUL_POLL_SECONDS}
    silent = replace(observed(), pods=tuple(replace(pod, agent=None) for pod in observed().pods))
    assert (await delays_of(Rig.of(silent), clock, 3600))[-1] == WATCHFUL_POLL_SECONDS


async def test_a_change_of_the_decided_status_makes_the_reconciles_frequent_again(clock: Clock) -> None:
    rig = Rig.of(NO_DRAFT)
    await delays_of(rig, clock, 3600)
    rig.observer.observed = replace(rig.observer.observed, pods=observed().pods)
    assert await rig.reconcile() == BUSY_POLL_SECONDS


@pytest.mark.parametrize("seen", [observed(), observed(keys_exist=False)], ids=["children", "keys"])
async def test_a_refused_write_is_told_at_once_and_tried_again_after_growing_delays(
    clock: Clock, seen: Observed
) -> None:
    rig = Rig.of(seen)
    rig.actor.result = REFUSED
    delays = await delays_of(rig, clock, 4 * 3600)
    assert delays[0] == BUSY_POLL_SECONDS
    assert sorted(delays) == delays
    assert delays[-1] == LONGEST_REST
    served = Rig.of(observed())
    await delays_of(served, clock, 8 * 3600)
    served.actor.result = REFUSED
    assert await served.reconcile() == BUSY_POLL_SECONDS


async def test_a_store_that_does_not_answer_is_looked_at_by_its_own_schedule(clock: Clock) -> None:
    away = Rig.of(observed(store=StoreView(reason="Unreachable", error="no answer")))
    away.observer.store.due_seconds = 7
    assert await away.reconcile() == 7
    missing = Rig.of(observed(store=StoreView(reason="SecretMissing", error="create the Secret")))
    assert await missing.reconcile() == WATCHFUL_POLL_SECONDS, "no event shows that a person creates it"


@pytest.mark.parametrize(("news", "woken", "acts"), [(False, False, 0), (True, False, 1), (False, True, 1)])
async def test_between_two_reconciles_the_store_is_looked_at_alone(
    clock: Clock, *, news: bool, woken: bool, acts: int
) -> None:
    """A reconcile lists every kind of children, and a look costs the API server nothing."""
    rig = Rig.of(observed())
    rig.observer.store.due_seconds = 60
    assert (await delays_of(rig, clock, 3400))[-1] == 60
    rig.observer.store.news, before = news, rig.actor.acts
    await rig.reconcile(woken=woken)
    assert rig.actor.acts - before == acts


async def test_a_reconcile_that_failed_is_made_again_whatever_the_store_says(clock: Clock) -> None:
    rig = Rig.of(observed())
    await rig.reconcile()
    rig.actor.takes = fail
    with pytest.raises(KubernetesError):
        await rig.reconcile()
    with pytest.raises(KubernetesError):
        await rig.reconcile(woken=False)


async def test_the_delay_counts_from_the_end_of_a_reconcile(clock: Clock) -> None:
    """An observation may wait 20 s for the store."""
    rig = Rig.of(CANARY)
    await delays_of(rig, clock, 3600)
    rig.actor.takes = lambda: setattr(clock, "seconds", clock.seconds + 20)
    assert await rig.reconcile() == WATCHFUL_POLL_SECONDS


@pytest.mark.parametrize(("seconds", "expected"), [(20, 20), (-1, LONGEST_REST)])
async def test_a_candidate_is_looked_at_when_its_next_attempt_is_due(
    clock: Clock, seconds: float, expected: float
) -> None:
    not_before = datetime.now(UTC) + timedelta(seconds=seconds)
    failed = CandidateStatus(version=1, phase=CandidatePhase.FAILED, attempt=2, not_before=not_before, job="j")
    pinned = observed(
        spec=spec(serving={"replicas": 2}, rollout={"pin": 0}),
        store=store(0, 1),
        status=SpeculatorStatus(candidate=failed),
    )
    assert await Rig.of(pinned).reconcile() == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    ("wall", "monotonic", "gap"),
    [(2, 2, False), (40, 40, False), (3600, 2, True), (-3600, 2, True), (700, 700, True), (2, 700, True)],
    ids=["busy", "slow", "the clock is set ahead", "it is set back", "the process stood still", "and its clock"],
)
def test_only_time_that_was_observed_counts(wall: float, monotonic: float, *, gap: bool) -> None:
    """So no jump of a clock ends a deadline."""
    observed_time, later = ObservedTime(), NOW + timedelta(seconds=wall)
    assert observed_time.has_gap(NOW, 0.0), "nothing was observed before a restart"
    observed_time.record(NOW, 100.0, decided=True)
    assert observed_time.has_gap(later, 100.0 + monotonic) is gap
    observed_time.record(NOW, 100.0, decided=False)
    assert observed_time.has_gap(later, 100.0 + monotonic), "nothing was decided while the store was away"


async def test_a_taken_name_is_told_at_once(clock: Clock) -> None:
    rig = Rig.of(observed(), ExecutionResult(name_taken=("Service chat",)))
    assert await delays_of(rig, clock, 3) == [BUSY_POLL_SECONDS, LONGEST_REST]
