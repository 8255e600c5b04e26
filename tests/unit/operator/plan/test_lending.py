"""Lending a replica to a measurement: which one, when, and what ends the loan."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_operator.observe.observed import DeployedTemplate, JobView, Observed, PodView, RefusedJob, WorkloadView
from aurora_operator.plan import Plan, plan
from aurora_protocol.agent_api import MeasurementPhase, MeasurementStatus
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.pod_settings import Replica
from tests.unit.operator.worlds import (
    CONFIG,
    NOW,
    agent,
    evidence,
    job_settings,
    observed,
    pod,
    spec,
    store,
)

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


def begun() -> Observed:
    """The pod is chosen and its Job runs, but has not asked the agent for the pod yet."""
    return world(status=status(world()), jobs=(JobView(JOB, 1, 1),))


def lent(phase: MeasurementPhase = MeasurementPhase.MEASURING) -> Observed:
    """The pod is withdrawn for the Job that runs."""
    workload = WorkloadView(current=True, replicas=2, ready=1)
    return replace(begun(), pods=(pod("chat-a", 0), withdrawn("chat-b", phase)), deployment=workload)


def replica(made_: Plan) -> Replica:
    assert made_.job is not None
    found = job_settings(made_.job).replica
    assert found is not None
    return found


def candidate(made_: Plan) -> CandidateStatus:
    assert made_.status is not None
    assert made_.status.candidate is not None
    return made_.status.candidate


def test_a_job_is_created_for_a_replica_that_the_status_names() -> None:
    first = made(world())
    assert candidate(first).pod == "chat-b"
    chosen = replica(first)
    assert (chosen.pod, chosen.ip, chosen.measurement, chosen.epoch) == ("chat-b", "10.0.0.6", JOB, 1)
    for phase in (None, *MeasurementPhase):
        seen = begun() if phase is None else lent(phase)
        assert (made(seen).job, made(seen).delete_jobs) == (None, ()), "the Job asks for the pod and keeps it"
        assert status(seen).candidate == seen.status.candidate


def test_a_measurement_names_the_image_that_the_replica_runs_while_its_pods_wait_for_an_upgrade() -> None:
    serving = {"spec": {"containers": [{"name": "agent", "image": "a:1"}, {"name": "sglang", "image": "former:1"}]}}
    job = made(world(deployed=DeployedTemplate(serving, whole=True))).job
    assert job is not None
    assert job_settings(job).image == "former:1"
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == CONFIG.runtime_image


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pods": (pod("chat-a", 0), pod("chat-b", 0, ready=False))}, "1 of 2 pods are ready"),
        ({"pods": (pod("chat-a", 0), pod("chat-b", 0, agent=None))}, "1 of 2 pods are ready"),
        ({"pods": (pod("chat-a", 0),)}, "1 of 2 pods are ready"),
        ({"pods": (pod("chat-a", 0), pod("chat-b", 3))}, "1 of 2 pods are ready and serve the active version"),
        ({"pods": (pod("chat-a", 0), withdrawn("chat-b", measurement="another"))}, "chat-b must return"),
        ({"deployment": WorkloadView(current=False, replicas=2, ready=2)}, "current template"),
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
    assert result.job is None
    assert candidate(result).pod is None
    assert words in candidate(result).message


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


@pytest.mark.parametrize("end", ["passed", "rejected", "undecided", "aborted", "rolling", "measured in a Job"])
@pytest.mark.parametrize("seen", [begun(), lent()], ids=["before the pod left", "while it is measured"])
def test_only_the_end_of_a_measurement_or_a_roll_deletes_the_job_that_holds_the_pod(seen: Observed, end: str) -> None:
    verdicts = {"passed": VerdictKind.PASS, "rejected": VerdictKind.REJECT, "undecided": VerdictKind.INCONCLUSIVE}
    if end in verdicts:
        seen = replace(seen, store=store(0, 1, evidence=(evidence(1, verdicts[end]),)))
    if end == "aborted":
        seen = replace(seen, abort=1)
    if end == "rolling":
        rolling = RolloutStatus(phase=RolloutPhase.ROLLING, version=1, epoch=3)
        seen = replace(seen, status=seen.status.model_copy(update={"rollout": rolling}))
    if end == "measured in a Job":
        seen = replace(seen, spec=spec(serving={"replicas": 2}))
    assert made(seen).delete_jobs == (() if end == "measured in a Job" else (JOB,))
    assert made(seen).job is None


def test_a_measurement_that_a_roll_ended_begins_again_after_it() -> None:
    rolling = RolloutStatus(phase=RolloutPhase.ROLLING, version=1, epoch=3)
    seen = lent()
    seen = replace(seen, status=seen.status.model_copy(update={"rollout": rolling}))
    stored = status(seen)
    assert stored.candidate is not None
    assert (stored.candidate.phase, stored.candidate.pod) == (CandidatePhase.VALIDATING, None)
    rested = stored.model_copy(update={"rollout": RolloutStatus(epoch=4)})
    assert made(replace(seen, status=rested, jobs=())).job is None, "the pod must return first"
    again = replica(made(world(status=rested)))
    assert (again.measurement, again.epoch) == (JOB, 4)


@pytest.mark.parametrize("seen", [begun(), lent()], ids=["before the pod left", "while it is measured"])
def test_the_job_is_deleted_when_another_pod_is_not_ready(seen: Observed) -> None:
    """Otherwise no pod would serve while a healthy engine is measured."""
    down = tuple(replace(view, ready=False) if view.name == "chat-a" else view for view in seen.pods)
    called = made(replace(seen, pods=down))
    assert (called.delete_jobs, called.job) == ((JOB,), None)
    assert candidate(called).phase is CandidatePhase.FAILED


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
    assert (planned.job is not None) == lent_
    assert "17" not in candidate(planned).message, "a count in the status would be written again and again"
    workload = WorkloadView(current=True, replicas=3, ready=2)
    away = replace(lent(), spec=given, pods=(*pods[:2], withdrawn("chat-b")), deployment=workload)
    assert made(away).delete_jobs == (() if kept else (JOB,))


@pytest.mark.parametrize("refused", [True, False], ids=["a refused Job", "an overloaded pod"])
def test_a_loan_that_fails_is_repeated_after_growing_delays(*, refused: bool) -> None:
    """Otherwise lending, overload, recall and recovery would follow each other within seconds, for ever."""
    now, waits = NOW, list[float]()
    home = world()
    home = replace(home, status=status(home))
    for attempt in range(1, 9):
        name = f"chat-validate-v1-{attempt}"
        if refused:
            seen = replace(home, refused_job=RefusedJob(name, "exceeded quota: jobs"))
        else:
            overloaded = (pod("chat-a", 0, ready=False), withdrawn("chat-b", measurement=name))
            seen = replace(home, pods=overloaded, jobs=(JobView(name, 1, attempt),))
        failed = plan(seen, CONFIG, now)
        assert candidate(failed).phase is CandidatePhase.FAILED
        assert failed.delete_jobs == (() if refused else (name,)), "at once"
        assert failed.status is not None
        home, began = replace(home, status=failed.status), now
        while not (result := plan(home, CONFIG, now)).job:
            now += timedelta(seconds=5)
        assert result.status is not None
        home = replace(home, status=result.status)
        waits.append((now - began).total_seconds())
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]


def test_a_roll_waits_until_the_replica_is_back() -> None:
    passed = replace(lent(), store=store(0, 1, evidence=(evidence(1),)))
    waiting = made(passed)
    assert waiting.status is not None
    assert waiting.status.rollout.phase is RolloutPhase.IDLE
    returning = replace(
        passed, status=waiting.status, pods=(pod("chat-a", 0), withdrawn("chat-b", MeasurementPhase.RETURNING))
    )
    assert status(returning).rollout.phase is RolloutPhase.IDLE
    back = replace(returning, pods=(pod("chat-a", 0), pod("chat-b", 0)))
    assert status(back).rollout.phase is RolloutPhase.JUDGING


def test_a_lent_pod_whose_agent_does_not_answer_counts_as_lent() -> None:
    silent = replace(lent(), pods=(pod("chat-a", 0), pod("chat-b", 0, ready=False, agent=None)))
    shown = status(silent)
    ready = next(c for c in shown.conditions if c.type is ConditionType.READY)
    assert ready.status.value == "True"
    assert shown.candidate is not None
    assert shown.candidate.phase is CandidatePhase.VALIDATING


def test_a_replica_that_is_being_deleted_is_not_chosen_but_measured_on_to_its_end() -> None:
    """An autoscaler went from three pods to two, and pods that are not ready go first."""
    ending = replace(withdrawn("chat-b"), terminating=True)
    seen = replace(lent(), pods=(pod("chat-a", 0), ending, pod("chat-c", 0)))
    assert (made(seen).job, made(seen).delete_jobs) == (None, ())
    leaving = replace(pod("chat-c", 0), terminating=True)
    assert replica(made(world(pods=(pod("chat-a", 0), pod("chat-b", 0), leaving)))).pod == "chat-b"


def test_a_lost_status_finds_the_replica_again_while_its_job_runs() -> None:
    seen = replace(lent(), status=SpeculatorStatus())
    seen = replace(seen, status=status(seen))
    assert made(seen).delete_jobs == ()
    found = status(seen).candidate
    assert found is not None
    assert (found.phase, found.pod) == (CandidatePhase.VALIDATING, "chat-b")


def test_no_replica_is_lent_while_a_version_is_pinned() -> None:
    pinned = spec(serving={"replicas": 2}, validation={"measureOn": "Replica"}, rollout={"pin": 0})
    assert made(replace(begun(), jobs=(), spec=pinned)).job is None
