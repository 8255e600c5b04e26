"""A measurement's Job is suspended and resumed on a real cluster, as a queue does that preempts it.

The Job controller of Kubernetes deletes the Job's pod. Neither it nor the operator may count that as a failure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from aurora_api.v1alpha1.status import CandidatePhase, SpeculatorStatus
from aurora_operator.children.metadata import JOB_LABEL
from aurora_operator.kubernetes_api import JOB, POD, Object
from aurora_protocol.pod_settings import EXIT_INTERRUPTED
from tests.assets.s3 import S3
from tests.cluster.command import wait_until
from tests.integration.operator.operator_rig import PYTHON, Rig, spec
from tests.unit.operator.worlds import registration

NAME, JOB_NAME = "suspended", "suspended-validate-v1-1"
LONG_VALIDATOR = f"""
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({EXIT_INTERRUPTED}))
time.sleep(1e6)
"""
"""Measures for ever, and ends like the real validator when its pod is told to end."""


@pytest.fixture(scope="module", name="rig")
def _rig(operator: Rig) -> Iterator[Rig]:
    """A speculator with one pod that serves version 0, and a queue's label on its measurements."""
    with operator.speculator_with_a_draft(NAME, _body(operator.s3)):
        operator.wait(NAME, "a pod that serves", lambda status: status.updated == "1/1", 90)
        yield operator


def _body(s3: S3) -> dict[str, Any]:
    body = spec(s3, replicas=1)
    template = body["validation"]["template"]
    template["metadata"] = {"labels": {"kueue.x-k8s.io/queue-name": "research"}}
    template["spec"]["containers"][0]["command"] = [str(PYTHON), "-u", "-c", LONG_VALIDATOR]
    return body


def _suspend(rig: Rig, *, suspend: bool) -> None:
    patch = json.dumps({"spec": {"suspend": suspend}})
    rig.cluster.kubectl("patch", "job", JOB_NAME, "-n", rig.namespace, "--type=merge", "-p", patch)


def _is_suspended(status: SpeculatorStatus) -> bool:
    return status.candidate is not None and "suspended" in status.candidate.message


def _pods(rig: Rig) -> Sequence[Object]:
    return rig.list(POD, f"{JOB_LABEL}={JOB_NAME}")


def _pod_runs(rig: Rig) -> bool:
    return any(pod["status"].get("phase") == "Running" for pod in _pods(rig))


def _job_is_idle(rig: Rig) -> bool:
    """The Job is suspended in the words of its controller, and its pod is gone."""
    conditions = rig.read(JOB, JOB_NAME).get("status", {}).get("conditions") or ()
    suspended = any(one["type"] == "Suspended" and one["status"] == "True" for one in conditions)
    return suspended and not _pods(rig)


def test_a_job_that_is_suspended_while_it_measures_goes_on_later_as_the_same_attempt(rig: Rig) -> None:
    rig.registry(NAME).register(registration(1))
    rig.wait(NAME, "version 1 is measured", lambda status: status.candidate is not None)
    wait_until("the validator runs", lambda: _pod_runs(rig), 90)
    assert rig.read(JOB, JOB_NAME)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"

    _suspend(rig, suspend=True)
    rig.wait(NAME, "suspended", _is_suspended, 60)
    wait_until("the validator's pod is gone", lambda: _job_is_idle(rig), 90)

    _suspend(rig, suspend=False)
    goes_on = rig.wait(NAME, "resumed", lambda status: not _is_suspended(status), 60)
    wait_until("another validator runs", lambda: _pod_runs(rig), 90)
    assert goes_on.candidate is not None
    assert (goes_on.candidate.phase, goes_on.candidate.attempt) == (CandidatePhase.VALIDATING, 1)
    failed = [
        one for one in rig.read(JOB, JOB_NAME)["status"].get("conditions") or () if one["type"].startswith("Fail")
    ]
    assert failed == []
