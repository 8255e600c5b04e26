"""A speculator that rests: whether its trainer's pod and its validation Job exist, and what the status says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.observe.observed import Observed, StoreView, WorkloadView
from aurora_protocol.agent_api import TraceBudget
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.worlds import NOW, agent, condition, lineage, made, observed, pod, spec, status, store

NO_PODS: dict[str, Any] = {"pods": (), "deployment": WorkloadView(current=True, replicas=0, ready=0)}
STOPPED = WorkloadView(current=True, replicas=0, ready=0)


def suspended(replicas: int = 0, **more: Any) -> Observed:
    given = spec(
        serving={"replicas": replicas},
        training={"suspended": True},
        validation={"measureOn": more.pop("measure_on", "Job")},
    )
    return observed(**({"spec": given} | (NO_PODS if replicas == 0 else {}) | more))


def trainer_replicas(seen: Observed) -> int:
    (workload,) = [child for child in made(seen).children if child["metadata"]["name"] == "chat-trainer"
                   and child["kind"] != "Service"]  # fmt: skip
    found: int = workload["spec"]["replicas"]
    return found


@pytest.mark.parametrize(
    ("seen", "replicas"),
    [
        pytest.param(observed(), 1, id="training goes on"),
        pytest.param(observed(spec=spec(serving={"replicas": 0}), **NO_PODS), 1, id="zero replicas, and it trains on"),
        pytest.param(suspended(), 0, id="suspended with zero replicas"),
        pytest.param(suspended(replicas=2), 0, id="suspended, and pods serve"),
        pytest.param(suspended(replicas=2, store=StoreView()), 1, id="suspended, and no lineage has begun"),
        pytest.param(suspended(store=StoreView(lineage=lineage())), 0, id="suspended, and the lineage has begun"),
    ],
)
def test_a_trainer_runs_only_while_something_needs_it(seen: Observed, replicas: int) -> None:
    assert trainer_replicas(seen) == replicas


def test_a_stopped_trainer_stays_stopped_while_the_store_is_away() -> None:
    resting = suspended()
    away = replace(resting, status=status(resting), store=StoreView(reason="Unreachable", error="no route"))
    assert trainer_replicas(away) == 0
    resumed = observed(trainer=STOPPED, store=away.store, status=away.status)
    assert trainer_replicas(resumed) == 0
    assert "no route" in condition(resumed, ConditionType.TRAINER_READY).message, "no pod is missing"
    new = observed(trainer=STOPPED, store=away.store, status=SpeculatorStatus())
    assert trainer_replicas(new) == 1, "nothing was lost that the trainer could begin anew"


def test_a_speculator_at_rest_is_ready_and_says_why_nothing_runs() -> None:
    record = TrainerStatus(phase=TrainerPhase.TRAINING, step=7, shards=1, trained_tokens=9, updated=NOW)
    resting = suspended(trainer=STOPPED, store=store(0, trainer=record))
    ready = condition(resting, ConditionType.READY)
    assert (ready.status.value, ready.reason) == ("True", "ScaledToZero")
    trainer = condition(resting, ConditionType.TRAINER_READY)
    assert (trainer.status.value, trainer.reason) == ("True", "Suspended")
    training = status(resting).training
    assert (training.phase, training.step) == ("Suspended", 7), "the last report came before the suspension"
    assert not made(resting).moving
    assert made(replace(resting, status=status(resting))).status is None, "an idle speculator writes nothing"


@pytest.mark.parametrize(("age", "reason"), [(timedelta(minutes=4), "Starting"), (timedelta(minutes=6), "Silent")])
def test_a_trainer_that_starts_after_a_long_suspension_is_not_called_silent_at_once(
    age: timedelta, reason: str
) -> None:
    record = TrainerStatus(
        phase=TrainerPhase.TRAINING, step=7, shards=1, trained_tokens=9, updated=NOW - timedelta(days=3)
    )
    started = WorkloadView(current=True, replicas=1, ready=1, created=NOW - age)
    seen = observed(trainer=started, store=store(0, trainer=record))
    assert condition(seen, ConditionType.TRAINER_READY).reason == reason


def test_nothing_is_traced_while_training_is_suspended() -> None:
    pods = tuple(
        pod(name, 0, agent=agent(name, 0, trace_budget=TraceBudget(tokens_per_minute=10_000))) for name in "ab"
    )
    orders = made(suspended(replicas=2, pods=pods)).trace_limits
    assert [order.budget.tokens_per_minute for order in orders] == [0, 0]
