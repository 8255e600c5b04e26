"""The Events and decisions of a status are posted and counted although the answer to its write was lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.act.actor import ExecutionResult
from aurora_operator.act.status_writer import stored_form
from aurora_operator.act.unposted_notes import MAX_NOTES, UnpostedNotes
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.kubernetes_api import Object
from aurora_operator.metrics.speculator_figures import FIGURES
from aurora_operator.plan import EventNote, Plan
from tests.unit.operator.test_reconciler import (
    OWNER_KEY,
    FakeActor,
    FakeApi,
    FakeObserver,
    reconciler_at,
)
from tests.unit.operator.worlds import MINIMAL, observed, store

LOST = KubernetesError("PATCH auroraspeculators/chat/status: ProtocolError", 0)


@dataclass
class RecordingActor(FakeActor):
    """Keeps the plans, and those of them that it executed to the end."""

    plans: list[Plan] = field(default_factory=list)
    posted: list[str] = field(default_factory=list)

    async def act(self, *parts: Any) -> ExecutionResult:
        self.plans.append(parts[0])
        result = await super().act()
        self.posted += [note.reason for note in parts[0].notes]
        return result


@pytest.fixture(autouse=True)
def _no_decisions_before() -> None:
    FIGURES.forget(*OWNER_KEY)


def counted() -> int:
    """How many measurements the metrics say have begun."""
    return FIGURES._known(*OWNER_KEY).decisions["ValidationStarted"]


def store_status(observer: FakeObserver, plan: Plan) -> None:
    """The API server has stored the status of ``plan``, and the cache shows it."""
    assert plan.status is not None
    stored = SpeculatorStatus.model_validate(stored_form(plan.status))
    observer.observed = replace(observer.observed, status=stored)


@pytest.mark.parametrize("error", [LOST, KubernetesError("etcd timed out", 500), Conflict("a Job moved on", 409)])
async def test_a_decision_whose_status_is_stored_is_told_once_after_the_reconcile_failed(error: Exception) -> None:
    observer, actor = FakeObserver(observed(store=store(0, 1))), RecordingActor(error)
    reconciler = reconciler_at(observer, actor)
    with pytest.raises(KubernetesError):
        await reconciler.reconcile()
    store_status(observer, actor.plans[0])
    actor.error = None
    for _ in range(3):
        await reconciler.reconcile()
    assert (actor.posted.count("ValidationStarted"), counted()) == (1, 1)


async def test_a_decision_is_told_once_although_its_status_was_not_stored_at_first() -> None:
    observer, actor = FakeObserver(observed(store=store(0, 1))), RecordingActor(LOST)
    reconciler = reconciler_at(observer, actor)
    with pytest.raises(KubernetesError):
        await reconciler.reconcile()
    actor.error = None
    await reconciler.reconcile()
    store_status(observer, actor.plans[-1])
    await reconciler.reconcile()
    assert (actor.posted.count("ValidationStarted"), counted()) == (1, 1)


@pytest.mark.parametrize("stored", [0, 2])
async def test_a_decision_is_told_once_after_attempts_over_a_cache_that_was_behind(stored: int) -> None:
    observer, actor = FakeObserver(observed(store=store(0, 1))), RecordingActor(LOST)
    reconciler = reconciler_at(observer, actor)
    for _ in range(3):
        with pytest.raises(KubernetesError):
            await reconciler.reconcile()
    store_status(observer, actor.plans[stored])
    with pytest.raises(KubernetesError):
        await reconciler.reconcile()
    actor.error = None
    for _ in range(2):
        await reconciler.reconcile()
    assert (actor.posted.count("ValidationStarted"), counted()) == (1, 1)


def test_reconciles_that_keep_failing_remember_a_bounded_number_of_notes() -> None:
    unposted = UnpostedNotes()
    for number in range(2 * MAX_NOTES):
        former, status = (SpeculatorStatus(traces=count) for count in (number, number + 1))
        unposted.complete(Plan(status=status, notes=(EventNote("Degraded", str(number)),)), former)
    last = unposted.complete(Plan(), SpeculatorStatus(traces=2 * MAX_NOTES))
    assert [note.message for note in last.notes] == [str(number) for number in range(MAX_NOTES, 2 * MAX_NOTES)]


class LosingApi(FakeApi):
    """Stores the next status that is applied, and loses its answer."""

    loses = False

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        answer = super().apply(obj, subresource=subresource)
        if self.loses:
            self.loses = False
            raise LOST
        return answer


async def test_an_invalid_spec_is_told_once_although_the_answer_was_lost() -> None:
    api = LosingApi(MINIMAL | {"target": {"model": 7}}, {})
    reconciler = api.reconciler()
    await reconciler.reconcile()
    api.loses = True
    with pytest.raises(KubernetesError):
        await reconciler.reconcile()
    for _ in range(2):
        await reconciler.reconcile()
    assert [event["reason"] for event in api.created] == ["InvalidSpec"]
