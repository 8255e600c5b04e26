"""Pods that were deleted and do not end, as on a lost node: a measurement on one has failed, and is made again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_operator.children.metadata import ATTEMPT_LABEL, JOB_LABEL, VERSION_LABEL
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.kubernetes_views import HUNG_AFTER, has_hung, job_view
from aurora_operator.observe.observed import JobView, Observed
from aurora_protocol.evidence_records import VerdictKind
from tests.unit.operator.worlds import NOW, evidence, made, observed, status, store

NAME = "chat-validate-v1-1"
HUNG = f"its pod {NAME}-x was deleted and does not end: its node gpu-7 may be lost"


def job(**more: Any) -> Object:
    labels = {VERSION_LABEL: "1", ATTEMPT_LABEL: "1"}
    return {"kind": "Job", "metadata": {"name": NAME, "labels": labels}, **more}


def validator(gone_for: timedelta | None, phase: str = "Running", created: str = "2026-01-01T00:00:00Z") -> Object:
    """A validator's pod. ``gone_for``: the time since the end of its grace period, if the pod was deleted."""
    deleted = {} if gone_for is None else {"deletionTimestamp": (NOW - gone_for).isoformat()}
    labels = {JOB_LABEL: NAME}
    return {
        "kind": "Pod",
        "metadata": {"name": f"{NAME}-x", "uid": "u", "creationTimestamp": created, "labels": labels} | deleted,
        "spec": {"nodeName": "gpu-7"},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("gone_for", "phase", "hung"),
    [
        pytest.param(None, "Running", False, id="it runs"),
        pytest.param(timedelta(seconds=-30), "Running", False, id="it has time to end"),
        pytest.param(timedelta(seconds=5), "Running", False, id="the clocks differ"),
        pytest.param(HUNG_AFTER, "Running", True, id="it does not end"),
        pytest.param(HUNG_AFTER, "Pending", True, id="it never started"),
        pytest.param(HUNG_AFTER, "Failed", False, id="it has ended and a finalizer keeps it"),
    ],
)
def test_a_pod_has_hung_that_does_not_end_in_its_time(gone_for: timedelta | None, phase: str, hung: bool) -> None:
    pod = validator(gone_for, phase)
    assert has_hung(pod, NOW) is hung
    seen = job_view(job(), [pod], NOW)
    assert (seen.failed, seen.message) == ((True, HUNG) if hung else (False, ""))
    assert not job_view(job(), [pod]).finished


def test_a_job_waits_for_its_last_pod_only_and_not_while_it_is_suspended() -> None:
    hung = validator(HUNG_AFTER)
    replaced = validator(None, created="2026-01-01T01:00:00Z")
    assert not job_view(job(), [hung, replaced], NOW).finished
    suspended = job_view(job(spec={"suspend": True}), [hung], NOW)
    assert (suspended.suspended, suspended.finished) == (True, False)
    failing = {"conditions": [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]}
    assert not job_view(job(status=failing), [validator(timedelta())], NOW).finished, "its pod may still write evidence"
    assert job_view(job(status=failing), [hung], NOW).message == HUNG
    complete = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert not job_view(job(status=complete), [hung], NOW).failed
    failed = {"conditions": [{"type": "Failed", "status": "True", "reason": "R", "message": "m"}]}
    assert job_view(job(status=failed), [hung], NOW).message == "the Job failed: R: m"


def measured() -> Observed:
    """Version 1 is measured, and the pod of its Job has hung."""
    begun = observed(store=store(0, 1))
    return replace(begun, status=status(begun), jobs=(job_view(job(), [validator(HUNG_AFTER)], NOW),))


def candidate(seen: Observed) -> CandidateStatus:
    assert seen.status.candidate is not None
    return seen.status.candidate


def test_a_measurement_on_a_lost_node_fails_and_is_made_again_and_what_it_writes_later_decides_nothing() -> None:
    lost = measured()
    failed = replace(lost, status=status(lost))
    assert candidate(failed).phase is CandidatePhase.FAILED
    assert HUNG in candidate(failed).message
    late = store(0, 1, evidence=(evidence(1),))
    assert status(replace(failed, store=late)).candidate == failed.status.candidate
    later = NOW + timedelta(minutes=1)
    again = made(failed, later)
    assert again.delete_jobs == (NAME,)
    assert again.job is not None
    assert again.job["metadata"]["name"] == "chat-validate-v1-2"
    assert again.status is not None
    running = replace(failed, status=again.status, jobs=(JobView("chat-validate-v1-2", 1, 2),), store=late)
    assert status(running, later).candidate == again.status.candidate, "the second attempt decides"
    undecided = evidence(1, VerdictKind.INCONCLUSIVE, attempt=2)
    decided = status(replace(running, store=store(0, 1, evidence=(evidence(1), undecided))), later)
    assert decided.candidate is not None
    assert decided.candidate.phase is CandidatePhase.INCONCLUSIVE


def test_evidence_that_was_written_before_its_node_was_lost_counts() -> None:
    passed = status(replace(measured(), store=store(0, 1, evidence=(evidence(1),))))
    assert passed.candidate is not None
    assert passed.candidate.phase is CandidatePhase.VALIDATED
