"""The status for people: its fields, its conditions, and when they are written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import (
    RolloutPhase,
)
from aurora_operator.observe.observed import (
    CounterSample,
    Observed,
    PodView,
    WorkloadView,
)
from aurora_operator.plan import plan
from aurora_operator.plan.status_builder import REFRESH, differs_in_decisions, worth_writing
from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.unit.operator.worlds import (
    CONFIG,
    NOW,
    agent,
    condition,
    evidence,
    made,
    observed,
    pod,
    spec,
    status,
    store,
    trainer_record,
)

AT_WORK = (TrainerPhase.WAITING_FOR_TRACES, TrainerPhase.TRAINING)
SUSPENDED = {"suspended": True}


def test_a_trainer_that_changes_between_training_and_waiting_changes_only_figures() -> None:
    """Light traffic makes it change every few seconds, for days."""
    waits, trains = (status(observed(store=store(0, trainer=trainer_record(phase=phase)))) for phase in AT_WORK)
    reasons = {c.reason for one in (waits, trains) for c in one.conditions if c.type is ConditionType.TRAINER_READY}
    assert reasons == {"WaitingForTraces", "Training"}
    assert not differs_in_decisions(waits, trains)
    assert not worth_writing(waits, trains, REFRESH / 2)
    assert worth_writing(waits, trains, REFRESH)


@pytest.mark.parametrize("kind", ConditionType)
def test_only_the_message_about_the_trainer_is_a_figure(kind: ConditionType) -> None:
    shown = status(observed(store=store(0, trainer=trainer_record())))
    changed = [c.model_copy(update={"message": "other"}) if c.type is kind else c for c in shown.conditions]
    other = shown.model_copy(update={"conditions": changed})
    assert differs_in_decisions(shown, other) is (kind is not ConditionType.TRAINER_READY)


def test_a_trainer_that_is_suspended_or_fell_silent_is_no_figure() -> None:
    works = status(observed(store=store(0, trainer=trainer_record())))
    others = (
        observed(store=store(0, trainer=trainer_record()), spec=spec(serving={"replicas": 2}, training=SUSPENDED)),
        observed(store=store(0, trainer=trainer_record(updated=NOW - timedelta(hours=1)))),
    )
    for other in others:
        assert differs_in_decisions(works, status(other))


@pytest.mark.parametrize("phase", [TrainerPhase.STARTING, TrainerPhase.TRAINING])
def test_a_message_that_no_condition_holds_is_cut_and_ends_no_plan(phase: TrainerPhase) -> None:
    record = TrainerStatus(phase=phase, step=7, shards=2, trained_tokens=900, message="x" * 40_000, updated=NOW)
    found = condition(observed(store=store(0, trainer=record)), ConditionType.TRAINER_READY)
    assert found.message == "x" * 32_768


def test_an_endpoint_without_encryption_is_named_once_in_the_condition_of_the_store() -> None:
    for endpoint, named in (("http://minio.storage:9000", True), ("https://s3.example.org", False), (None, False)):
        place = {"bucket": "bucket", "endpoint": endpoint, "credentials": {"secretRef": {"name": "s3"}}}
        found = condition(observed(spec=spec(store=place)), ConditionType.STORAGE_READY)
        assert found.status is ConditionStatus.TRUE
        assert ("store.endpoint is http" in found.message) is named


def reported(age: timedelta, phase: TrainerPhase = TrainerPhase.WAITING_FOR_TRACES) -> Observed:
    """A world whose trainer wrote its record ``age`` ago."""
    record = TrainerStatus(phase=phase, step=7, shards=2, trained_tokens=900, updated=NOW - age)
    return observed(store=store(0, trainer=record))


def test_a_trainer_that_reports_nothing_for_five_minutes_is_not_ready() -> None:
    found = condition(reported(timedelta(minutes=6)), ConditionType.TRAINER_READY)
    assert (found.status.value, found.reason) == ("False", "Silent")
    assert "since 2025-12-31 23:54:00 UTC" in found.message
    silent = replace(reported(timedelta(minutes=6)), status=status(reported(timedelta(minutes=6))))
    assert plan(silent, CONFIG, NOW + timedelta(hours=1), timedelta(hours=1)).status is None, "said once"
    suspended = replace(
        reported(timedelta(minutes=6)), spec=spec(serving={"replicas": 2}, training={"suspended": True})
    )
    assert condition(suspended, ConditionType.TRAINER_READY).reason == "Suspended"


def test_the_reason_of_ready_names_the_problem() -> None:
    assert condition(observed(), ConditionType.READY).status.value == "True"
    old = WorkloadView(current=False, replicas=2, ready=2)
    assert condition(observed(deployment=old), ConditionType.READY).reason == "PodsUpdating"
    stray = observed(pods=(pod("chat-a", 0), pod("chat-b", 3)))
    assert condition(stray, ConditionType.READY).reason == "SwapsPending"
    hidden = observed(pods=(pod("chat-a", 0), pod("chat-b", 0, agent=None)))
    assert condition(hidden, ConditionType.READY).reason == "PodsNotReady"
    refused = observed(apply_errors=("Deployment chat: no",))
    assert condition(refused, ConditionType.READY).reason == "ApplyRefused"


def test_transition_times_change_with_the_status_only() -> None:
    first = status(observed())
    later = NOW + timedelta(minutes=5)
    stray = observed(pods=(pod("chat-a", 0), pod("chat-b", 3)), status=first)
    times = {c.type: c.last_transition_time for c in status(stray, later).conditions}
    assert times[ConditionType.SERVING_READY] == later
    assert times[ConditionType.READY] == NOW, "the other pod serves"
    assert times[ConditionType.STORAGE_READY] == NOW
    down = observed(pods=(pod("chat-a", 0, ready=False), pod("chat-b", 0, ready=False)), status=first)
    times = {c.type: c.last_transition_time for c in status(down, later).conditions}
    assert times[ConditionType.READY] == later
    assert times[ConditionType.STORAGE_READY] == NOW


def test_the_estimated_speedup_weighs_the_pods_by_their_traffic_and_is_kept_without_traffic() -> None:
    def serving(name: str, speedup: float | None) -> PodView:
        return pod(name, 0, agent=agent(name, 0, speedup_estimate=speedup))

    def counted(name: str, tokens: int) -> CounterSample:
        now = agent(name, 0).live
        return CounterSample("b1", NOW, now.tokens - tokens, now.rounds)

    pods = (serving("chat-a", 3.0), serving("chat-b", 1.0), serving("chat-c", None))
    world = observed(pods=pods, recent_counters={name: counted(name, 60) for name in ("chat-a", "chat-b", "chat-c")})
    busy = status(world)
    assert busy.estimated_speedup == "~1.5x", "120 tokens, where 20 + 60 would have come without speculation"
    quiet = replace(
        world,
        status=busy.model_copy(update={"updated": "unknown"}),
        recent_counters={name: counted(name, 0) for name in ("chat-a", "chat-b")},
    )
    assert status(quiet).estimated_speedup == "~1.5x"
    assert status(observed()).estimated_speedup is None, "no engine chooses the size of its rounds"
    two = {"replicas": 2}
    fixed = replace(quiet, spec=spec(serving=two, draft={"shape": "Fixed"}))
    assert status(fixed).estimated_speedup is None, "its engines never estimate, so the value would stay for ever"
    assert status(replace(world, spec=spec(serving=two, draft={"shape": "Fixed"}))).estimated_speedup == "~1.5x", (
        "pods of the former template still choose"
    )


def test_an_idle_speculator_writes_no_status_and_changing_figures_are_written_later() -> None:
    first = status(observed())
    same = observed(status=first)
    assert plan(same, CONFIG, NOW + timedelta(hours=1), timedelta(hours=1)).status is None
    busier = replace(same, pods=(pod("chat-a", 0), pod("chat-b", 0, agent=agent("chat-b", 0, boot="b2"))))
    counted = replace(
        busier,
        recent_counters={p.name: CounterSample("b1", NOW, 0, agent("x", 0).live.rounds) for p in same.pods},
    )
    assert plan(counted, CONFIG, NOW, timedelta(seconds=1)).status is None
    written = plan(counted, CONFIG, NOW, timedelta(seconds=30)).status
    assert written is None, "no verify round passed in the window"


def test_live_acceptance_is_tokens_per_round_since_the_engine_started() -> None:
    samples = {"chat-a": CounterSample("b1", NOW, 10, 10), "chat-b": CounterSample("former", NOW, 10, 10)}
    shown = status(observed(recent_counters=samples))
    assert shown.accept_length == "2.25"


def test_a_pod_that_cannot_return_to_the_active_version_is_degraded() -> None:
    swap = agent("x", 0).swap.model_copy(
        update={"phase": SwapPhase.FAILED, "version": 0, "error": "disk full", "finished": NOW}
    )
    stuck = pod("chat-b", 3, agent=agent("chat-b", 3, swap=swap))
    assert "disk full" in condition(observed(pods=(pod("chat-a", 0), stuck)), ConditionType.STALLED).message


def test_the_initial_draft_shows_the_speedup_measured_with_its_candidates() -> None:
    shown = status(observed(store=store(0, 1, evidence=(evidence(1, VerdictKind.REJECT),))))
    assert shown.active is not None
    assert shown.active.speedup == "1.35x (1.30-1.40)"


def ready(world: Observed) -> tuple[str, str]:
    found = condition(world, ConditionType.READY)
    return found.status.value, found.reason


def test_pods_that_are_missing_or_not_ready_leave_ready_true_while_others_serve() -> None:
    one_down = observed(pods=(pod("chat-a", 0), pod("chat-b", 0, ready=False)))
    assert ready(one_down) == ("True", "PodsNotReady")
    assert condition(one_down, ConditionType.READY).message == "1 of 2 pods are ready"
    assert condition(one_down, ConditionType.SERVING_READY).status.value == "False"
    scaled_up = observed(spec=spec(serving={"replicas": 3}))
    assert ready(scaled_up) == ("True", "Scaling")
    updating = observed(deployment=WorkloadView(current=False, replicas=2, ready=1))
    assert ready(updating) == ("True", "PodsUpdating")
    for world in (one_down, scaled_up, updating):
        notes = made(replace(world, status=status(observed()))).notes
        assert not [note for note in notes if note.warning]


def test_ready_is_false_while_no_pod_serves_clients() -> None:
    down = observed(pods=(pod("chat-a", 0, ready=False), pod("chat-b", 0, ready=True, terminating=True)))
    assert ready(down) == ("False", "Scaling")
    assert condition(down, ConditionType.RECONCILING).reason == "Scaling"


def test_a_store_that_is_away_leaves_ready_true_while_pods_serve_and_gives_a_warning() -> None:
    away = observed(store=replace(store(0), reason="Unreachable", error="timed out"))
    assert ready(away) == ("True", "StorageUnreachable")
    assert condition(away, ConditionType.STALLED).status.value == "False"
    warned = [note.reason for note in made(replace(away, status=status(observed()))).notes if note.warning]
    assert warned == ["StorageUnreachable"]
    wrong = observed(store=replace(store(0), reason="SecretMissing", error="no Secret"))
    assert ready(wrong) == ("False", "StorageSecretMissing")
    assert condition(wrong, ConditionType.STALLED).reason == "StorageSecretMissing"


def test_uploads_that_fail_are_a_fault_of_the_storage_while_clients_are_served() -> None:
    cannot = pod("chat-b", 0, agent=agent("chat-b", 0, upload_error="create traces/1: InvalidAccessKeyId"))
    world = observed(pods=(pod("chat-a", 0), cannot))
    storage = condition(world, ConditionType.STORAGE_READY)
    assert (storage.status.value, storage.reason) == ("False", "UploadsFail")
    assert "chat-b" in storage.message
    assert "InvalidAccessKeyId" in storage.message
    assert ready(world) == ("True", "StorageUploadsFail")
    assert condition(world, ConditionType.STALLED).status.value == "False"


def test_pods_that_do_not_speculate_after_crashes_serve_and_say_so() -> None:
    held = pod("chat-b", 0, agent=agent("chat-b", 0, speculation_off="the engine crashed twice"))
    serving = condition(observed(pods=(pod("chat-a", 0), held)), ConditionType.SERVING_READY)
    assert (serving.status.value, serving.reason) == ("True", "SpeculationOff")
    assert "chat-b: the engine crashed twice" in serving.message


@pytest.mark.parametrize("world", [observed(), observed(pods=()), observed(name_taken=("Service chat",))])
def test_at_most_one_of_reconciling_and_stalled_is_true(world: Observed) -> None:
    kinds = (ConditionType.RECONCILING, ConditionType.STALLED)
    assert [condition(world, kind).status.value for kind in kinds].count("True") <= 1


def test_a_name_that_is_taken_needs_a_human() -> None:
    taken = observed(name_taken=("Service chat", "ServiceAccount chat"))
    found = condition(taken, ConditionType.STALLED)
    assert found.status.value == "True"
    assert "Service chat, ServiceAccount chat." in found.message
    assert found.message.endswith("pods would use ServiceAccount chat.")
    one = condition(observed(name_taken=("Service chat",)), ConditionType.STALLED)
    assert "no Deployment" not in one.message, "no pod uses a Service"
    assert ready(taken) == ("False", "NameTaken")
    assert condition(observed(), ConditionType.STALLED).status.value == "False"


def test_every_condition_type_is_always_set() -> None:
    assert [c.type for c in status(observed()).conditions] == list(ConditionType)


@pytest.mark.parametrize("lost", [{}, {"version": 1, "analysis": "unreadable"}, {"version": 7}])
def test_a_roll_whose_operator_state_is_lost_stops_without_blame(lost: dict[str, Any]) -> None:
    world = observed(store=store(0, 1, evidence=(evidence(1),)))
    begun = status(world)
    assert begun.rollout.phase is RolloutPhase.JUDGING
    stopped = made(replace(world, status=begun.model_copy(update={"operator_state": lost})))
    assert stopped.status is not None
    assert (stopped.status.rollout.phase, stopped.advance) == (RolloutPhase.IDLE, None)
    assert "status.operatorState was lost" in stopped.status.rollout.message
