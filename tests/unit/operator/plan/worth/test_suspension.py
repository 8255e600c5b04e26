"""A plan with ``training.suspendWhen``: figures in the status, the trainer that follows, and what stays as it was."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, SpeculatorStatus, TrainingStatus
from aurora_api.v1alpha1.training import SuspensionReason, TrainingWorth
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import AcceptedTokens, CounterSample, Observed, PodView, StoreView, UserRequests
from aurora_operator.observe.observed_time import ObservedTime
from aurora_operator.plan import plan
from aurora_operator.plan.worth.figures import MIN_CHANGE_SECONDS
from aurora_operator.plan.worth.policy import CRITERIA_UNSET, SUSPENDED_BY_PERSON
from aurora_operator.plan.worth.report import with_worth
from aurora_operator.reconciler import MAX_FIGURES_GAP, REST_JITTER, REST_POLL_SECONDS
from aurora_protocol.agent_api import DraftCounters, LiveCounters, MeasurementPhase, MeasurementStatus, SavedTime
from aurora_protocol.evidence_records import MeasurementEnd, VerdictKind
from aurora_protocol.pod_settings import TrainerSettings
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from tests.example_count import example_count
from tests.unit.operator.plan.test_plan_anything import worlds
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
)

HOUR = timedelta(hours=1)
GPU = {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}}
CRITERIA = {"candidatesWithoutGain": 3, "savingBelowCost": True}


def with_resources(container: str, resources: Any) -> dict[str, Any]:
    return {"template": {"spec": {"containers": [{"name": container, "resources": resources}]}}}


def gpu_spec(**training: Any) -> Any:
    serving = {"replicas": 2} | with_resources("sglang", GPU)
    return spec(serving=serving, training=with_resources("trainer", GPU) | training)


def saving(name: str, share: float, seconds: float = 90000, **more: Any) -> PodView:
    return pod(name, 0, agent=agent(name, 0, saved_time=SavedTime(share=share, observed_seconds=seconds), **more))


def world(*pods: PodView, old: TrainingWorth | None = None, **more: Any) -> Observed:
    stored = SpeculatorStatus(training=TrainingStatus(worth=old or TrainingWorth()))
    given = {"spec": gpu_spec(suspendWhen=CRITERIA), "status": stored, "pods": pods or (saving("chat-a", 0.05),)}
    return observed(**(given | more))


def trainer(seen: Observed) -> Object:
    (found,) = [c for c in made(seen).children if c["kind"] == "Deployment" and c["metadata"]["name"] == "chat-trainer"]
    return found


def compared(count: int | None, hours: int = 0) -> StoreView:
    record = TrainerStatus(
        phase=TrainerPhase.TRAINING,
        step=1,
        shards=1,
        trained_tokens=1,
        comparisons_without_gain=count,
        updated=NOW + hours * HOUR,
    )
    return store(0, trainer=record)


SUSPENDED = TrainingWorth(
    suspended_for=SuspensionReason.NO_GAIN, since=NOW, suspended_version=0, message="3 drafts in a row brought no gain"
)

# Figures -------------------------------------------------------------------------------------------------------------


def test_the_status_shows_cost_and_saving_without_any_criterion() -> None:
    seen = world(saving("chat-a", 0.5), saving("chat-b", 0.234), spec=gpu_spec())
    worth = status(seen).training.worth
    assert (worth.cost_seconds_per_day, worth.cost_device) == (86400, "nvidia.com/gpu")
    assert (worth.saved_seconds_per_day, worth.saved_device) == (63000, "nvidia.com/gpu"), "0.734 of a day, two digits"
    assert worth.suspended_for is None


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param((), id="no pod"),
        pytest.param((saving("chat-a", 0.5), pod("chat-b", 0)), id="an engine of a fixed shape"),
        pytest.param((saving("chat-a", 0.5), pod("chat-b", 0, agent=None)), id="an agent that does not answer"),
        pytest.param((saving("chat-a", 0.5), saving("chat-b", 0.5, 599)), id="a young engine"),
    ],
)
def test_a_saving_that_one_pod_does_not_tell_is_unknown(pods: tuple[PodView, ...]) -> None:
    assert status(replace(world(), pods=pods)).training.worth.saved_seconds_per_day is None


def test_pods_that_serve_nobody_do_not_count() -> None:
    lent = MeasurementStatus(measurement="chat-validate-v1-1", phase=MeasurementPhase.MEASURING)
    others = (
        pod("chat-b", 0, ready=False, agent=agent("chat-b", 0, boot="", measurement=lent)),
        pod("chat-c", 0, terminating=True),
        pod("chat-d", 0, ready=False, agent=None),
    )
    assert status(world(saving("chat-a", 0.5), *others)).training.worth.saved_seconds_per_day == 43000


def test_a_template_without_devices_makes_both_figures_unknown() -> None:
    worth = status(world(saving("chat-a", 0.5), spec=spec())).training.worth
    assert (worth.cost_seconds_per_day, worth.saved_seconds_per_day) == (None, None)


def test_an_idle_speculator_writes_no_status_for_an_average_that_fades() -> None:
    first = status(world(saving("chat-a", 0.5), spec=gpu_spec()))
    later = world(saving("chat-a", 0.4999, 90060), spec=gpu_spec(), status=first)
    assert plan(later, CONFIG, NOW + HOUR, timedelta(hours=1)).status is None


# Drafts without a gain -----------------------------------------------------------------------------------------------


def test_a_saving_that_fades_after_the_last_request_is_written_a_few_times_a_day() -> None:
    shown, written = status(world(saving("chat-a", 0.5))).training.worth, list[int]()
    for minute in range(0, 14 * 24 * 60, 10):
        seen = world(saving("chat-a", 0.5 * math.exp(-minute / 1440)), old=shown)
        if (now := status(seen).training.worth) != shown:
            shown = now
            written.append(minute)
    assert len(written) < 45, "one in three hours, and none after a week"
    assert written[-1] < 7 * 24 * 60
    assert shown.saved_seconds_per_day is not None
    assert shown.saved_seconds_per_day < MIN_CHANGE_SECONDS * 2


def test_a_saving_that_changes_clearly_is_shown_at_once() -> None:
    shown = status(world(saving("chat-a", 0.5))).training.worth
    for share, expected in ((0.47, 43000), (0.44, 38000), (0.9, 78000), (0.0, 0)):
        seen = world(saving("chat-a", share), old=shown)
        assert status(seen).training.worth.saved_seconds_per_day == expected


def measured(version: int, kind: VerdictKind, without_gain: int = 2, **more: Any) -> TrainingWorth:
    """The worth after the measurement of ``version`` ended with a verdict of this kind."""
    candidate = CandidateStatus(version=version, phase=CandidatePhase.VALIDATING, job=f"chat-validate-v{version}-1")
    old = SpeculatorStatus(
        candidate=candidate, training=TrainingStatus(worth=TrainingWorth(measured_without_gain=without_gain))
    )
    end = more.pop("end", None)
    view = store(0, version, *more.pop("newer", ()), evidence=(evidence(version, kind, end=end),))
    return status(observed(status=old, store=view, **more)).training.worth


def test_a_rejected_candidate_counts_and_one_that_passed_does_not() -> None:
    assert measured(4, VerdictKind.REJECT).measured_without_gain == 3
    assert measured(4, VerdictKind.PASS).measured_without_gain == 2


def test_a_measurement_that_gave_way_and_a_version_that_a_person_aborted_do_not_count() -> None:
    ended: dict[str, Any] = {"newer": (5,), "end": MeasurementEnd.GAVE_WAY}
    assert measured(4, VerdictKind.INCONCLUSIVE, **ended).measured_without_gain == 2
    assert measured(4, VerdictKind.INCONCLUSIVE, newer=(5,)).measured_without_gain == 3
    assert measured(4, VerdictKind.REJECT, user_requests=UserRequests(abort=4)).measured_without_gain == 2


def test_the_trainers_comparisons_count_since_training_last_resumed() -> None:
    old = TrainingWorth(since=NOW, measured_without_gain=1)
    assert status(world(old=old, store=compared(2))).training.worth.without_gain == 3
    assert status(world(old=old, store=compared(2, hours=-1))).training.worth.without_gain == 1
    assert status(world(old=old, store=compared(None))).training.worth.without_gain == 1, (
        "a trainer that does not train"
    )
    assert status(world(old=old, store=compared(2**63 - 1))).training.worth.without_gain < 2**62


@pytest.mark.parametrize("hours_ahead", [-24, 24])
def test_the_trainers_comparisons_count_by_the_operators_clock(hours_ahead: int) -> None:
    old, record = TrainingWorth(since=NOW), compared(2, hours_ahead)
    for changed, count in ((NOW - HOUR, 0), (NOW, 2)):
        seen = world(old=old, store=replace(record, trainer_changed=changed))
        assert status(seen).training.worth.without_gain == count


# Suspension ----------------------------------------------------------------------------------------------------------


def test_a_decision_is_stored_before_the_trainer_follows_it() -> None:
    running = world(old=TrainingWorth(since=NOW - HOUR), store=compared(3))
    decided = made(running)
    assert decided.status is not None
    assert decided.status.training.worth.suspended_for is SuspensionReason.NO_GAIN
    assert decided.moving, "the next reconcile comes at once"
    assert [note.reason for note in decided.notes if note.reason.startswith("Training")] == ["TrainingSuspended"]
    assert trainer(running)["spec"]["template"] == trainer(world())["spec"]["template"]
    assert plan(replace(running, status=decided.status), CONFIG, NOW, timedelta(seconds=1)).status is not None
    assert condition(replace(running, status=decided.status), ConditionType.TRAINER_READY).reason == "NotWorthItsCost"


def test_a_suspended_trainer_waits_without_a_gpu_and_bounds_the_traces() -> None:
    workload = trainer(world(old=SUSPENDED))
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    (text,) = [v["value"] for v in container["env"] if v["name"] == "AURORA_SETTINGS"]
    assert TrainerSettings.from_json(text).training.suspended
    assert container["resources"] == {"limits": {"memory": "8Gi"}}
    assert workload["spec"]["replicas"] == 1, "pods may write traces"
    untraced = gpu_spec(suspendWhen=CRITERIA).model_copy(update={"capture": spec(capture={"sampleRatio": "0"}).capture})
    assert trainer(world(old=SUSPENDED, spec=untraced))["spec"]["replicas"] == 0


def test_several_gpus_of_a_suspended_trainer_start_no_torchrun() -> None:
    two = gpu_spec(suspendWhen=CRITERIA, **with_resources("trainer", {"limits": {"nvidia.com/gpu": 2}}))
    command = trainer(world(spec=two, old=SUSPENDED))["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "torch.distributed.run" not in command
    running = trainer(world(spec=two))["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "torch.distributed.run" in running


@pytest.mark.parametrize("change", [{}, {"suspended": True, "suspendWhen": CRITERIA}])
def test_a_person_overrides_the_decision_at_once(change: dict[str, Any]) -> None:
    seen = world(old=SUSPENDED, spec=gpu_spec(**change))
    (container,) = trainer(seen)["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == GPU
    worth = status(seen).training.worth
    assert (worth.suspended_for, worth.since) == (None, None)
    assert worth.message == (SUSPENDED_BY_PERSON if change else CRITERIA_UNSET)
    told = [note.reason for note in made(seen).notes if note.reason.startswith("Training")]
    assert told == ([] if change else ["TrainingResumed"]), "training.suspended resumes nothing"
    expected = "Suspended" if change else "Starting"
    assert condition(seen, ConditionType.TRAINER_READY).reason == expected


def test_a_changed_criterion_restarts_no_trainer() -> None:
    assert trainer(world()) == trainer(world(spec=gpu_spec()))


def live(proposed: int, accepted: int) -> LiveCounters:
    return LiveCounters(draft=DraftCounters(requests=1, proposed_at=(proposed, 5), accepted_at=(accepted,)))


def test_traffic_that_moved_away_resumes_training() -> None:
    old = SUSPENDED.model_copy(update={"acceptance": "0.800", "acceptance_fell_since": NOW - HOUR})
    before = CounterSample("b1", NOW, 0, 0, AcceptedTokens(1000, 800))
    for accepted, resumed in ((875, False), (870, True)):
        view = saving("chat-a", 0.05, live=live(1100, accepted))
        seen = world(view, old=old, recent_counters={"chat-a": before})
        assert (status(seen).training.worth.suspended_for is None) is resumed
    few = world(saving("chat-a", 0.05, live=live(1099, 800)), old=old, recent_counters={"chat-a": before})
    assert status(few).training.worth.suspended_for is not None, "too little traffic to tell"


RESTS = tuple(timedelta(seconds=REST_POLL_SECONDS * share) for share in (1 - REST_JITTER, 1 + REST_JITTER))
"""The shortest and the longest pause of a speculator at rest."""


def after_rests(seen: Observed, time: timedelta) -> TrainingWorth:
    """The worth after ``seen`` was observed for ``time``, as seldom as a speculator at rest is."""
    observed_time, pauses, status_, now = ObservedTime(), cycle(RESTS), seen.status, NOW
    assert observed_time.has_gap(NOW, 0), "the operator has just started"
    while now <= NOW + time:
        seconds = (now - NOW).total_seconds()
        gap = observed_time.has_gap(now, seconds, MAX_FIGURES_GAP)
        status_ = with_worth(status_, replace(seen, status=status_, figures_gap=gap), (), now)
        observed_time.record(now, seconds, decided=True)
        now += next(pauses)
    return status_.training.worth


def test_a_saving_below_the_cost_for_a_day_suspends_training_while_the_speculator_rests() -> None:
    low = world(saving("chat-a", 0.05), saving("chat-b", 0.05), old=TrainingWorth(since=NOW - HOUR))
    assert not made(low).moving, "it rests"
    assert after_rests(low, 23 * HOUR).suspended_for is None
    assert after_rests(low, 24 * HOUR + RESTS[1]).suspended_for is SuspensionReason.SAVING_BELOW_COST


def test_traffic_that_moved_away_for_an_hour_resumes_training_while_the_speculator_rests() -> None:
    old = SUSPENDED.model_copy(update={"acceptance": "0.800"})
    before = CounterSample("b1", NOW, 0, 0, AcceptedTokens(1000, 800))
    moved = world(saving("chat-a", 0.05, live=live(1100, 860)), old=old, recent_counters={"chat-a": before})
    assert after_rests(moved, HOUR / 2).suspended_for is not None
    assert after_rests(moved, HOUR + RESTS[1]).suspended_for is None


def test_nothing_is_decided_while_the_store_is_away() -> None:
    away = world(old=SUSPENDED, store=StoreView(reason="Unreachable", error="no route"))
    assert status(away).training.worth == SUSPENDED


@settings(max_examples=example_count(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_a_suspension_changes_nothing_but_training(seen: Observed) -> None:
    """No measurement, roll, rollback or child but the trainer depends on it."""
    worth = TrainingWorth(suspended_for=SuspensionReason.NO_GAIN, since=NOW, suspended_version=0)
    criteria = spec(training={"suspendWhen": CRITERIA}).training
    stored = seen.status.model_copy(update={"training": TrainingStatus(worth=worth)})
    suspended = replace(seen, spec=seen.spec.model_copy(update={"training": criteria}), status=stored)
    usual, resting = plan(seen, CONFIG, NOW), plan(suspended, CONFIG, NOW)
    assert (resting.swaps, resting.job, resting.delete_jobs) == (usual.swaps, usual.job, usual.delete_jobs)
    assert (resting.leases, resting.advance, resting.decisions) == (usual.leases, usual.advance, usual.decisions)
    without = [[c for c in p.children if c["metadata"]["name"] != "chat-trainer"] for p in (usual, resting)]
    assert without[0] == without[1]
