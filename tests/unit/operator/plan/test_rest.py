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


NO_TRACES = TraceBudget(tokens_per_minute=0)
TRACING_NOTHING = (pod("chat-a", 0, agent=agent("chat-a", 0, trace_budget=NO_TRACES)),)


def suspended(replicas: int = 0, traced: int = 20_000, **more: Any) -> Observed:
    given = spec(
        serving={"replicas": replicas},
        training={"suspended": True},
        capture={"tokensPerMinute": traced},
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
        pytest.param(suspended(replicas=2), 1, id="suspended, and traces have to be bounded"),
        pytest.param(suspended(replicas=2, traced=0, pods=TRACING_NOTHING), 0, id="suspended, and nothing is traced"),
        pytest.param(suspended(replicas=2, traced=0), 1, id="suspended, and a pod may still trace"),
        pytest.param(suspended(replicas=2, traced=1), 1, id="suspended, and a few requests are traced"),
        pytest.param(suspended(store=StoreView(lineage=lineage())), 0, id="suspended before version 0 exists"),
        pytest.param(
            suspended(pods=(pod("chat-a", 0, terminating=True),)), 1, id="a pod that ends uploads its last traces"
        ),
    ],
)
def test_a_trainer_runs_only_while_something_needs_it(seen: Observed, replicas: int) -> None:
    assert trainer_replicas(seen) == replicas


def test_a_stopped_trainer_stays_stopped_while_the_store_is_away() -> None:
    resting = suspended()
    away = replace(resting, status=status(resting), store=StoreView(reason="Unreachable", error="no route"))
    assert trainer_replicas(away) == 0
    new = observed(trainer=STOPPED, store=away.store, status=SpeculatorStatus())
    assert trainer_replicas(new) == 1, "nothing was lost that the trainer could begin anew"


def test_a_speculator_at_rest_is_ready_and_says_why_nothing_runs() -> None:
    record = TrainerStatus(phase=TrainerPhase.TRAINING, step=7, shards=1, trained_tokens=9, updated=NOW)
    resting = suspended(trainer=STOPPED, store=store(0, trainer=record))
    ready = condition(resting, ConditionType.READY)
    assert (ready.status.value, ready.reason) == ("True", "ScaledToZero")
    trainer = condition(resting, ConditionType.TRAINER_READY)
    assert (trainer.status.value, trainer.reason) == ("True", "Suspended")
    assert trainer.message == "training is suspended and nothing else needs the trainer, so its pod is stopped"
    training = status(resting).training
    assert (training.phase, training.step) == ("Suspended", 7), "the last report came before the suspension"
    assert not made(resting).moving
    assert made(replace(resting, status=status(resting))).status is None, "an idle speculator writes nothing"


def test_a_trainer_that_starts_after_a_long_suspension_is_not_called_silent() -> None:
    before = NOW - timedelta(days=3)
    record = TrainerStatus(phase=TrainerPhase.SUSPENDED, step=7, shards=1, trained_tokens=9, updated=before)
    trainer = condition(observed(store=store(0, trainer=record)), ConditionType.TRAINER_READY)
    assert (trainer.status.value, trainer.reason) == ("True", "Starting")


def test_a_suspended_trainer_that_is_needed_and_not_ready_is_reported() -> None:
    waits = suspended(replicas=2, trainer=STOPPED)
    assert condition(waits, ConditionType.TRAINER_READY).reason == "PodNotReady"


@pytest.mark.parametrize(
    ("phase", "shown"),
    [(TrainerPhase.SUSPENDED, True), (TrainerPhase.STARTING, True), (TrainerPhase.TRAINING, False)],
)
def test_a_suspended_trainer_that_cannot_read_its_state_says_so(phase: TrainerPhase, *, shown: bool) -> None:
    why = "the trainer's state cannot be read: InvalidObjectState; restore the object"
    record = TrainerStatus(phase=phase, step=7, shards=1, trained_tokens=9, message=why, updated=NOW)
    trainer = condition(suspended(replicas=2, store=store(0, trainer=record)), ConditionType.TRAINER_READY)
    assert (trainer.status.value, trainer.reason) == ("True", "Suspended")
    assert (why in trainer.message) is shown
