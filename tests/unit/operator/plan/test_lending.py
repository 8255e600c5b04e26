"""Lending a replica to a measurement: when the replica leaves, and that it always returns."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_operator.observe.observed import DeployedTemplate, JobView, Observed, PodView, RefusedJob, WorkloadView
from aurora_operator.plan import Plan, plan
from aurora_operator.plan.candidate import MEASURING
from aurora_protocol.agent_api import MeasurementPhase, MeasurementStatus
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.pod_settings import ValidationSettings
from tests.unit.operator.worlds import CONFIG, NOW, agent, channel, evidence, observed, pod, registration, spec, store

JOB = "chat-validate-v1-1"


def withdrawn(name: str, phase: MeasurementPhase = MeasurementPhase.DRAINING, measurement: str = JOB) -> PodView:
    """A lent pod as its agent reports it: no engine, and not ready."""
    away = MeasurementStatus(measurement=measurement, phase=phase)
    nothing = {"engine_ready": False, "boot": "", "version": None, "checksum": None}
    state = agent(name, 0).model_copy(update=nothing | {"measurement": away})
    return pod(name, 0, ready=False, agent=state)


def world(**more: Any) -> Observed:
    """Version 1 is to be measured on one of two replicas."""
    given = spec(serving={"replicas": 2}, validation={"measureOn": "Replica"})
    return observed(**({"spec": given, "store": store(0, 1)} | more))


def made(seen: Observed) -> Plan:
    return plan(seen, CONFIG, NOW)


def status(seen: Observed) -> SpeculatorStatus:
    found = made(seen).status
    return seen.status if found is None else found


def chosen() -> Observed:
    """The pod is chosen, and its agent was asked."""
    return world(status=status(world()))


def lent(phase: MeasurementPhase = MeasurementPhase.MEASURING) -> Observed:
    """The pod is withdrawn and its Job runs."""
    pods = (pod("chat-a", 0), withdrawn("chat-b", phase))
    workload = WorkloadView(current=True, replicas=2, ready=1)
    return replace(chosen(), pods=pods, jobs=(JobView(JOB, 1, 1),), deployment=workload)


def test_no_pod_with_a_former_template_is_measured_on() -> None:
    old = WorkloadView(current=False, replicas=2, ready=2)
    waiting = made(world(deployment=old)).status
    assert waiting is not None
    assert waiting.candidate is not None
    assert "current template" in waiting.candidate.message
    edited = replace(lent(), jobs=(), deployment=old)
    assert [(lease.pod, lease.request.lease_seconds) for lease in made(edited).leases] == [("chat-b", 0)]
    assert made(edited).job is None


def test_a_measurement_names_the_image_that_the_replica_runs_while_its_pods_wait_for_an_upgrade() -> None:
    serving = {"spec": {"containers": [{"name": "agent", "image": "a:1"}, {"name": "sglang", "image": "former:1"}]}}
    waiting = replace(lent(), jobs=(), deployed=DeployedTemplate(serving, whole=True))
    job = made(waiting).job
    assert job is not None
    (container,) = job["spec"]["template"]["spec"]["containers"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert ValidationSettings.from_json(values["AURORA_SETTINGS"]).image == "former:1"
    assert container["image"] == CONFIG.runtime_image


def test_no_job_is_created_while_kubernetes_still_calls_the_lent_pod_ready() -> None:
    slow = replace(lent(), jobs=())
    still = tuple(replace(view, ready=True) for view in slow.pods)
    assert made(slow).job is not None
    assert made(replace(slow, pods=still)).job is None


def test_the_job_is_created_only_after_the_replica_was_chosen_and_withdrawn() -> None:
    first = made(world())
    assert first.status is not None
    assert first.status.candidate is not None
    assert (first.status.candidate.pod, first.job) == ("chat-b", None)
    (lease,) = first.leases
    assert (lease.pod, lease.request.measurement, lease.request.begin) == ("chat-b", JOB, True)
    assert lease.request.lease_seconds > 0

    withdrawn_ = replace(lent(MeasurementPhase.DRAINING), jobs=())
    second = made(withdrawn_)
    assert second.leases == ()
    assert second.job is not None
    (variable,) = (
        v for v in second.job["spec"]["template"]["spec"]["containers"][0]["env"] if v["name"] == "AURORA_SETTINGS"
    )
    settings = ValidationSettings.from_json(variable["value"])
    assert settings.replica is not None
    assert (settings.replica.pod, settings.replica.ip, settings.replica.measurement) == ("chat-b", "10.0.0.6", JOB)

    third = made(lent())
    assert (third.job, third.leases) == (None, ()), "the Job renews the lease, not the operator"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pods": (pod("chat-a", 0), pod("chat-b", 0, ready=False))}, "1 of 2 pods are ready"),
        ({"pods": (pod("chat-a", 0), pod("chat-b", 0, agent=None))}, "1 of 2 pods are ready"),
        ({"pods": (pod("chat-a", 0),)}, "1 of 2 pods are ready"),
        ({"pods": (pod("chat-a", 0), pod("chat-b", 3))}, "1 of 2 pods are ready and serve the active version"),
        ({"pods": (pod("chat-a", 0), withdrawn("chat-b", measurement="another"))}, "chat-b must return"),
        (
            {"spec": spec(serving={"replicas": 1}, validation={"measureOn": "Replica"}), "pods": (pod("chat-a", 0),)},
            "one has to go on serving",
        ),
    ],
)
def test_a_candidate_waits_while_no_replica_can_be_spared_and_its_message_says_why(
    changes: dict[str, Any], words: str
) -> None:
    result = made(world(**changes))
    assert not [lease for lease in result.leases if lease.request.begin]
    assert result.job is None
    assert result.status is not None
    assert result.status.candidate is not None
    assert result.status.candidate.pod is None
    assert words in result.status.candidate.message


def test_a_lent_pod_leaves_ready_true_and_its_state_is_shown() -> None:
    shown = status(lent())
    ready = next(c for c in shown.conditions if c.type is ConditionType.READY)
    assert (ready.status.value, ready.reason) == ("True", "Measuring")
    assert [p.state for p in shown.pods] == ["Ready", "Measuring"]
    broken = replace(lent(), pods=(pod("chat-a", 0, ready=False), withdrawn("chat-b")))
    ready = next(c for c in status(broken).conditions if c.type is ConditionType.READY)
    assert ready.reason == "PodsNotReady"


def test_a_lent_pod_is_not_asked_to_swap_and_the_others_do_not_wait_for_it() -> None:
    """A pin is set while a pod is lent: the others swap now, and the lent one after its return."""
    pinned = spec(serving={"replicas": 3}, validation={"measureOn": "Replica"})
    stray = replace(
        lent(),
        spec=pinned,
        pods=(pod("chat-a", 0), withdrawn("chat-b"), pod("chat-c", 0)),
        store=store(0, 1, active=1, evidence=(evidence(1),)),
    )
    assert {swap.pod for swap in made(stray).swaps} == {"chat-a", "chat-c"}


@pytest.mark.parametrize("end", ["passed", "failed", "rejected", "undecided", "aborted", "rolling", "lost status"])
def test_a_replica_is_taken_back_when_its_measurement_is_over(end: str) -> None:
    seen = lent()
    verdicts = {"passed": VerdictKind.PASS, "rejected": VerdictKind.REJECT, "undecided": VerdictKind.INCONCLUSIVE}
    if end in verdicts:
        seen = replace(seen, store=store(0, 1, evidence=(evidence(1, verdicts[end]),)))
    if end == "failed":
        seen = replace(seen, jobs=(JobView(JOB, 1, 1, failed=True, message="no prompts"),))
    if end == "aborted":
        seen = replace(seen, abort=1)
    if end == "rolling":
        rolling = RolloutStatus(phase=RolloutPhase.ROLLING, version=1, epoch=3)
        seen = replace(seen, status=seen.status.model_copy(update={"rollout": rolling}))
    if end == "lost status":
        seen = replace(seen, status=SpeculatorStatus(), jobs=(), store=store(0))
    (lease,) = made(seen).leases
    assert (lease.pod, lease.request.measurement, lease.request.lease_seconds) == ("chat-b", JOB, 0)
    assert lease.request.epoch >= 1


@pytest.mark.parametrize("phase", [MeasurementPhase.DRAINING, MeasurementPhase.MEASURING])
@pytest.mark.parametrize("jobs", [(), (JobView(JOB, 1, 1),)], ids=["before its Job", "while it is measured"])
def test_a_replica_is_taken_back_when_another_pod_is_not_ready(
    phase: MeasurementPhase, jobs: tuple[JobView, ...]
) -> None:
    """Otherwise no pod would serve while a healthy engine is measured."""
    down = (pod("chat-a", 0, ready=False), withdrawn("chat-b", phase))
    called = made(replace(lent(), pods=down, jobs=jobs))
    (lease,) = called.leases
    assert (lease.pod, lease.request.measurement, lease.request.lease_seconds) == ("chat-b", JOB, 0)
    assert called.job is None
    returning = (down[0], withdrawn("chat-b", MeasurementPhase.RETURNING))
    assert made(replace(lent(), pods=returning, jobs=jobs)).leases == (), "it is on its way"


@pytest.mark.parametrize(
    ("requests", "lent_", "kept"),
    [
        ((0, 0, 0), True, True),
        ((5, 6, 5), True, True),
        ((5, 6, 6), False, True),
        ((10, 6, 0), True, True),
        ((10, 7, 0), False, True),
        ((10, 7, None), True, True),
        ((11, 10, 0), False, False),
        ((11, 10, None), True, False),
        ((10, None, 9), True, True),
    ],
)
def test_a_replica_is_lent_only_while_the_others_have_room_for_all_requests(
    requests: tuple[int | None, ...], lent_: bool, kept: bool
) -> None:
    """Each of the two others runs ten requests: a replica leaves up to 80 % of them, and returns above all of them."""
    given = spec(serving={"replicas": 3, "maxRunningRequests": 10}, validation={"measureOn": "Replica"})
    pods = tuple(
        pod(name, 0, agent=agent(name, 0, requests_now=count))
        for name, count in zip(("chat-a", "chat-c", "chat-b"), requests, strict=True)
    )
    planned = made(world(spec=given, pods=pods))
    assert [lease.request.begin for lease in planned.leases] == ([True] if lent_ else [])
    assert planned.status is not None
    candidate = planned.status.candidate
    assert candidate is not None
    assert "17" not in candidate.message, "a count in the status would be written again and again"
    workload = WorkloadView(current=True, replicas=3, ready=2)
    away = replace(lent(), spec=given, pods=(*pods[:2], withdrawn("chat-b")), deployment=workload)
    assert [lease.request.lease_seconds for lease in made(away).leases] == ([] if kept else [0])


@pytest.mark.parametrize("has_job", [True, False], ids=["while it is measured", "before its Job"])
def test_a_loan_that_overloads_the_other_pod_is_repeated_after_growing_delays(*, has_job: bool) -> None:
    """Otherwise lending, overload, recall and recovery would follow each other within seconds, for ever."""
    seen, now, waits = chosen(), NOW, list[float]()
    home: dict[str, Any] = {"pods": (pod("chat-a", 0), pod("chat-b", 0)), "jobs": ()}
    for attempt in range(1, 9):
        name = f"chat-validate-v1-{attempt}"
        overloaded = (pod("chat-a", 0, ready=False), withdrawn("chat-b", measurement=name))
        jobs = (JobView(name, 1, attempt),) if has_job else ()
        recalled = plan(replace(seen, pods=overloaded, jobs=jobs), CONFIG, now)
        assert [(lease.pod, lease.request.begin) for lease in recalled.leases] == [("chat-b", False)], "at once"
        assert recalled.status is not None
        seen, began = replace(seen, status=recalled.status, **home), now
        while not (result := plan(seen, CONFIG, now)).leases:
            assert result.status is None or result.status.candidate == recalled.status.candidate
            now += timedelta(seconds=5)
        assert result.status is not None
        seen = replace(seen, status=result.status)
        waits.append((now - began).total_seconds())
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]


def test_a_lost_status_finds_the_replica_again_while_its_job_runs() -> None:
    found = made(replace(lent(), status=SpeculatorStatus()))
    assert found.leases == ()
    assert found.status is not None
    assert found.status.candidate is not None
    assert (found.status.candidate.phase, found.status.candidate.pod) == (CandidatePhase.VALIDATING, "chat-b")


def test_a_roll_waits_until_the_replica_is_back() -> None:
    passed = replace(lent(), store=store(0, 1, evidence=(evidence(1),)))
    waiting = made(passed)
    assert waiting.status is not None
    assert waiting.status.rollout.phase is RolloutPhase.IDLE
    returning = replace(
        passed, status=waiting.status, pods=(pod("chat-a", 0), withdrawn("chat-b", MeasurementPhase.RETURNING))
    )
    assert made(returning).leases == (), "it is on its way: no need to ask again"
    assert status(returning).rollout.phase is RolloutPhase.IDLE
    back = replace(returning, pods=(pod("chat-a", 0), pod("chat-b", 0)))
    assert status(back).rollout.phase is RolloutPhase.JUDGING


def test_no_job_is_created_after_the_lease_is_over() -> None:
    late = replace(lent(MeasurementPhase.RETURNING), jobs=())
    assert (made(late).job, made(late).leases) == (None, ())
    again = made(replace(late, pods=(pod("chat-a", 0), pod("chat-b", 0))))
    assert [lease.request.begin for lease in again.leases] == [True]


def test_a_replica_is_taken_back_when_its_job_is_refused_and_lent_again_after_growing_delays() -> None:
    """Otherwise the replica would leave, wait for the end of its lease, return and leave again, forever."""
    seen, now, waits = replace(lent(), jobs=()), NOW, list[float]()
    home: dict[str, Any] = {"pods": (pod("chat-a", 0), pod("chat-b", 0))}
    for attempt in range(1, 9):
        name = f"chat-validate-v1-{attempt}"
        away = (pod("chat-a", 0), withdrawn("chat-b", measurement=name))
        seen = replace(seen, pods=away, refused_job=None)
        asked = plan(seen, CONFIG, now).job
        assert asked is not None
        assert asked["metadata"]["name"] == name
        refused = plan(replace(seen, refused_job=RefusedJob(name, "exceeded quota: jobs")), CONFIG, now)
        assert refused.status is not None
        assert refused.status.candidate is not None
        assert refused.status.candidate.phase is CandidatePhase.FAILED
        assert "the API server refused" in refused.status.candidate.message
        assert [(lease.pod, lease.request.begin) for lease in refused.leases] == [("chat-b", False)], "at once"
        assert (refused.job, refused.status.rejected) == (None, [])
        seen, began = replace(seen, status=refused.status, **home), now
        while not (result := plan(seen, CONFIG, now)).leases:
            now += timedelta(seconds=5)
        assert result.status is not None
        seen = replace(seen, status=result.status)
        waits.append((now - began).total_seconds())
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]


def test_no_replica_is_lent_while_a_version_is_pinned() -> None:
    pinned = spec(serving={"replicas": 2}, validation={"measureOn": "Replica"}, rollout={"pin": 0})
    assert made(replace(chosen(), spec=pinned)).leases == ()


def test_a_lent_pod_whose_agent_does_not_answer_counts_as_lent() -> None:
    silent = replace(lent(), pods=(pod("chat-a", 0), pod("chat-b", 0, ready=False, agent=None)))
    shown = status(silent)
    ready = next(c for c in shown.conditions if c.type is ConditionType.READY)
    assert ready.status.value == "True"
    assert shown.candidate is not None
    assert shown.candidate.phase is CandidatePhase.VALIDATING


@pytest.mark.parametrize("before", ["a replica was chosen", "a replica has left"])
def test_a_candidate_that_is_measured_in_a_job_after_all_names_no_replica(before: str) -> None:
    seen = world()
    seen = replace(seen, status=status(seen), spec=spec(serving={"replicas": 2}))
    if before == "a replica has left":
        seen = replace(seen, pods=(pod("chat-a", 0), withdrawn("chat-b")))
    changed = made(seen)
    assert changed.job is not None
    (container,) = changed.job["spec"]["template"]["spec"]["containers"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert ValidationSettings.from_json(values["AURORA_SETTINGS"]).replica is None
    found = status(seen).candidate
    assert found is not None
    assert (found.pod, found.message) == (None, MEASURING)
    assert [lease.pod for lease in changed.leases] == (["chat-b"] if before == "a replica has left" else [])


def test_lease_requests_carry_the_rolls_epoch() -> None:
    high = SpeculatorStatus(rollout=RolloutStatus(epoch=7))
    seen = world(
        status=high,
        store=replace(store(0, 1), channel=channel(0, epoch=2), registrations={0: registration(0), 1: registration(1)}),
    )
    (lease,) = made(seen).leases
    assert lease.request.epoch == 7


def test_no_job_is_created_on_a_replica_that_is_being_deleted_and_another_one_is_lent() -> None:
    """An autoscaler went from three pods to two while chat-b was drained, and pods that are not ready go first."""
    ending = replace(withdrawn("chat-b"), terminating=True)
    seen = replace(lent(), pods=(pod("chat-a", 0), ending, pod("chat-c", 0)), jobs=())
    assert (made(seen).job, made(seen).leases) == (None, ())
    waits = replace(seen, status=status(seen))
    gone = replace(waits, pods=(pod("chat-a", 0), pod("chat-c", 0)))
    (lease,) = made(gone).leases
    assert (lease.pod, lease.request.measurement) == ("chat-c", JOB)


def test_a_measurement_goes_on_while_its_replica_that_is_being_deleted_still_runs() -> None:
    ending = replace(withdrawn("chat-b", MeasurementPhase.MEASURING), terminating=True)
    seen = replace(lent(), pods=(pod("chat-a", 0), ending, pod("chat-c", 0)))
    assert (made(seen).leases, made(seen).delete_jobs) == ((), ())
