"""One reconcile: a spec that does not parse, a cache that is behind, and the time until the next reconcile."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_operator.act.actor import ExecutionResult
from aurora_operator.act.authority import Authority
from aurora_operator.children.applied_template import AppliedTemplate
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.observe.observed import Observed, StoreView
from aurora_operator.observe.snapshot import Snapshot
from aurora_operator.observe.stored_resource import parse
from aurora_operator.plan.conditions.condition_builder import invalid_spec_status
from aurora_operator.plan.upgrade.decision import UpgradeDecision, UpgradeStage
from aurora_operator.reconciler import (
    AGENTS_AT_REST_SECONDS,
    BUSY_POLL_SECONDS,
    WATCHFUL_POLL_SECONDS,
    Reconciler,
)
from tests.unit.operator.worlds import CONFIG, MINIMAL, NOW, OWNER, observed, spec, status

OWNER_KEY = (OWNER.namespace, OWNER.name)
READY = Condition(type=ConditionType.READY, status=ConditionStatus.TRUE, reason="Serving", last_transition_time=NOW)
SERVING = READY.model_copy(update={"type": ConditionType.SERVING_READY})


@dataclass
class FakeApi:
    """An API server with one speculator and nothing else. Records what is applied, and puts answers into the cache."""

    spec: dict[str, Any]
    status: dict[str, Any]
    revision: int = 77
    refused: Exception | None = None
    """What the next write raises."""
    calls: list[str] = field(default_factory=list)
    applied: list[Object] = field(default_factory=list)
    created: list[Object] = field(default_factory=list)
    cache: ClusterCache = field(default_factory=lambda: ClusterCache(["AuroraSpeculator"]))

    def __post_init__(self) -> None:
        self.cache.put(self.stored)

    @property
    def stored(self) -> Object:
        metadata = {
            "namespace": OWNER.namespace,
            "name": OWNER.name,
            "uid": OWNER.uid,
            "generation": 2,
            "resourceVersion": str(self.revision),
        }
        return {"kind": "AuroraSpeculator", "metadata": metadata, "spec": self.spec, "status": self.status}

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self.calls.append(f"get {resource.kind}")
        if resource.kind != "AuroraSpeculator":
            raise NotFound(name, 404)
        return self.stored

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        assert subresource == "status", "no child is applied"
        if self.refused is not None:
            error, self.refused = self.refused, None
            raise error
        self.applied.append(obj)
        self.status, self.revision = obj["status"], self.revision + 1
        self.cache.put(self.stored)
        return self.stored

    def merge_status(self, obj: Object, changes: Mapping[str, Any]) -> Object:
        merged = {name: value for name, value in {**self.status, **changes}.items() if value is not None}
        return self.apply({**obj, "status": merged}, subresource="status")

    def reconciler(self) -> Reconciler:
        authority = Authority(self, CONFIG, lambda: None)  # type: ignore[arg-type]
        return Reconciler(self, self.cache, None, CONFIG, Fleet(), authority, OWNER_KEY)  # type: ignore[arg-type]

    def create(self, obj: Object) -> Object:
        assert obj["kind"] == "Event", "no child is created"
        self.created.append(obj)
        return obj


def conditions(api: FakeApi) -> dict[str, Condition]:
    return {c.type: c for c in SpeculatorStatus.model_validate(api.status).conditions}


async def test_an_invalid_spec_is_written_to_the_conditions_once() -> None:
    before = SpeculatorStatus(conditions=[READY, SERVING], updated="2/2")
    api = FakeApi(MINIMAL | {"target": {"model": 7}}, before.model_dump(mode="json", by_alias=True))
    reconciler = api.reconciler()
    assert await reconciler.reconcile() == 0, "the operator's name was written: observe again at once"
    api.applied.clear()
    assert await reconciler.reconcile() > WATCHFUL_POLL_SECONDS, "a change of the spec wakes the loop"
    invalid = conditions(api)[ConditionType.INVALID_SPEC]
    assert (invalid.status, invalid.reason) == (ConditionStatus.TRUE, "InvalidSpec")
    assert "target.model" in invalid.message
    assert invalid.observed_generation == 2
    assert conditions(api)[ConditionType.READY].status is ConditionStatus.FALSE
    assert conditions(api)[ConditionType.SERVING_READY] == SERVING, "the pods serve as before"
    assert api.status["updated"] == "2/2"
    assert api.applied[0]["metadata"]["resourceVersion"] == "78", "the version that the claim made"
    await reconciler.reconcile()
    assert len(api.applied) == 1, "an unchanged fault is not written again"
    assert api.calls == [], "the cache has all that is read"
    (event,) = api.created
    assert (event["reason"], event["type"]) == ("InvalidSpec", "Warning")
    assert "target.model" in event["message"]


async def test_a_spec_is_new_until_a_reconcile_began_with_it_however_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi(MINIMAL | {"target": {"model": 7}}, {})
    reconciler = api.reconciler()
    assert reconciler.has_new_spec()
    await reconciler.reconcile()
    assert not reconciler.has_new_spec(), "the spec is not valid"
    api.cache.put(api.stored | {"metadata": api.stored["metadata"] | {"generation": 3, "resourceVersion": "99"}})
    assert reconciler.has_new_spec()
    reconciler._cache_is_behind = True
    monkeypatch.setattr(api, "get", lambda *_: (_ for _ in ()).throw(KubernetesError("too many requests", 429)))
    with pytest.raises(KubernetesError):
        await reconciler.reconcile()
    assert not reconciler.has_new_spec()


def test_a_status_that_does_not_parse_counts_as_empty() -> None:
    _, _, parsed = parse(FakeApi(MINIMAL, {"replicas": "many"}).stored)
    assert parsed == SpeculatorStatus()


def test_the_condition_is_cleared_once_the_spec_parses() -> None:
    broken = invalid_spec_status(SpeculatorStatus(), 1, "capture.sampleRatio: not a ratio", NOW)
    corrected = {c.type: c.status for c in status(observed(status=broken)).conditions}
    assert corrected[ConditionType.INVALID_SPEC] is ConditionStatus.FALSE
    assert corrected[ConditionType.READY] is ConditionStatus.TRUE


@dataclass
class FakeStore:
    """Counts how often everything is to be read again."""

    resets: int = 0

    def read_everything_next(self) -> None:
        self.resets += 1


@dataclass
class FakeObserver:
    """Observes what a test sets, and records whether the agents were asked."""

    observed: Observed
    seconds_until_due: float = float("inf")
    store: FakeStore = field(default_factory=FakeStore)
    asked: list[bool] = field(default_factory=list)
    refreshed: int = 0
    error: Exception | None = None
    """The error that each observation raises."""

    async def observe(self, *, ask_agents: bool = True) -> Snapshot:
        self.asked.append(ask_agents)
        if self.error is not None:
            raise self.error
        return Snapshot(self.observed, {}, "token")

    async def refresh(self) -> None:
        self.refreshed += 1


@dataclass
class FakeActor:
    """Does nothing, or raises what a test sets."""

    error: Exception | None = None
    result: ExecutionResult = field(default_factory=ExecutionResult)
    tried_now: int = 0
    """How often refused writes were to be tried at once."""

    def try_refused_writes_now(self) -> None:
        self.tried_now += 1

    async def act(self, *_: Any) -> ExecutionResult:
        if self.error is not None:
            raise self.error
        return self.result


def written_by(installation: str) -> dict[str, Any]:
    """A stored status on which ``installation`` acts."""
    return {"operator": {"installation": installation, "version": version("aurora-operator")}}


def reconciler_at(observer: FakeObserver, actor: FakeActor | None = None) -> Reconciler:
    """A reconciler that observes a speculator on which its own installation acts."""
    made = FakeApi(MINIMAL, written_by(CONFIG.installation)).reconciler()
    world = observer.observed
    own = SpeculatorStatus.model_validate(written_by(CONFIG.installation)).operator
    observer.observed = replace(world, status=world.status.model_copy(update={"operator": own}))
    made._observer = observer  # type: ignore[assignment]
    made._actor = actor or FakeActor()  # type: ignore[assignment]
    return made


async def test_a_speculator_at_rest_is_looked_at_about_every_minute_and_its_agents_every_other_time() -> None:
    observer = FakeObserver(observed())
    reconciler = reconciler_at(observer)
    delay = await reconciler.reconcile(woken=True)
    assert 45 <= delay <= 75
    await reconciler.reconcile(woken=False)
    assert observer.asked == [True, False]
    reconciler._asked_seconds -= AGENTS_AT_REST_SECONDS
    await reconciler.reconcile(woken=False)
    await reconciler.reconcile(woken=True)
    assert observer.asked == [True, False, True, True], "a change in the cluster asks the agents at once"


async def test_a_plan_that_only_sets_the_finalizer_keeps_the_turn_to_restart() -> None:
    """Another speculator would take the turn, and more than ``maxConcurrent`` would restart at a time."""
    reconciler = reconciler_at(FakeObserver(observed(spec=DELETING, status=SpeculatorStatus())))
    restarting = UpgradeDecision(AppliedTemplate({}, {}), {}, UpgradeStage.RESTARTING)
    reconciler._fleet.report(OWNER_KEY, restarting)
    await reconciler.reconcile()
    assert reconciler._fleet.view(("team", "another")).restarting == 1


REFUSED = ExecutionResult(apply_errors=("Service chat: forbidden",))
FINALIZER_REFUSED = ExecutionResult(finalizer_refused=True, apply_errors=("the finalizer of store.deletionPolicy: no",))
DELETING = spec(serving={"replicas": 2}, store=MINIMAL["store"] | {"deletionPolicy": "Delete"})
SERVED = SpeculatorStatus(active=VersionStatus(version=0))


@pytest.mark.parametrize(
    ("world", "refused"),
    [(observed(), REFUSED), (observed(spec=DELETING, status=SERVED), FINALIZER_REFUSED)],
    ids=["child", "finalizer"],
)
async def test_a_refused_write_is_tried_again_after_growing_delays(
    monkeypatch: pytest.MonkeyPatch, world: Observed, refused: ExecutionResult
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    actor = FakeActor(result=refused)
    reconciler = reconciler_at(FakeObserver(world), actor)
    assert [await reconciler.reconcile(woken=False) for _ in range(7)] == [2, 4, 8, 16, 32, 45, 45]


async def test_a_refused_write_of_a_new_speculator_is_tried_again_after_growing_delays() -> None:
    no_draft = observed(store=StoreView(), pods=(), status=SpeculatorStatus())
    reconciler = reconciler_at(FakeObserver(no_draft), FakeActor(result=REFUSED))
    assert [await reconciler.reconcile(woken=False) for _ in range(5)] == [2, 4, 8, 15, 15]


async def test_a_refused_write_never_delays_a_roll() -> None:
    rolls = observed(status=SpeculatorStatus(rollout=RolloutStatus(phase=RolloutPhase.CANARY, version=1, epoch=1)))
    reconciler = reconciler_at(FakeObserver(rolls), FakeActor(result=REFUSED))
    assert [await reconciler.reconcile(woken=False) for _ in range(4)] == [BUSY_POLL_SECONDS] * 4


async def test_the_whole_store_is_read_again_after_an_agent_has_seen_a_higher_epoch() -> None:
    observer = FakeObserver(observed())
    await reconciler_at(observer).reconcile()
    assert observer.store.resets == 0
    await reconciler_at(observer, FakeActor(result=ExecutionResult(fencing_epoch=7))).reconcile()
    assert observer.store.resets == 1


async def test_after_a_conflict_the_resource_is_read_from_the_api_server_once() -> None:
    observer, actor = FakeObserver(observed()), FakeActor(Conflict("moved on", 409))
    reconciler = reconciler_at(observer, actor)
    with pytest.raises(Conflict):
        await reconciler.reconcile()
    assert observer.refreshed == 0
    actor.error = None
    await reconciler.reconcile()
    await reconciler.reconcile()
    assert observer.refreshed == 1


def test_a_speculator_that_is_being_deleted_is_gone() -> None:
    api = FakeApi(MINIMAL, {})
    reconciler = api.reconciler()
    assert not reconciler.is_gone()
    deleting = api.stored
    deleting["metadata"] |= {"deletionTimestamp": "2026-11-26T00:00:00Z", "resourceVersion": "78"}
    api.cache.put(deleting)
    assert reconciler.is_gone()


def test_a_speculator_that_was_created_again_under_the_same_name_is_another_one() -> None:
    api = FakeApi(MINIMAL, {})
    reconciler = api.reconciler()
    again = api.stored
    again["metadata"] |= {"uid": "another", "resourceVersion": "78"}
    api.cache.put(again)
    assert reconciler.is_gone()
    reconciler.show_stored_status()


async def test_a_reconcile_that_waited_for_its_slot_leaves_a_speculator_that_was_created_again_alone() -> None:
    api = FakeApi(MINIMAL, {})
    reconciler = api.reconciler()
    again = api.stored
    again["metadata"] |= {"uid": "another", "resourceVersion": "78"}
    api.cache.put(again)
    with pytest.raises(NotFound):
        await reconciler.reconcile()
    assert (api.applied, api.calls) == ([], [])
