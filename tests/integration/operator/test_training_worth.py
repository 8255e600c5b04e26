"""``training.suspendWhen`` on a real cluster: the operator suspends the trainer, and a person resumes it.

Pods run the stand-ins of ``operator_rig``. The test writes the hour before a suspension, and the candidates' outcomes,
into the status.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_api.v1alpha1.training import SuspensionReason
from aurora_operator.kubernetes_api import DEPLOYMENT
from aurora_protocol.pod_settings import TrainerSettings
from tests.cluster.command import wait_until
from tests.integration.operator.operator_rig import Rig, spec

NAME = "worth"


@pytest.fixture(scope="module", name="rig")
def _rig(operator: Rig) -> Iterator[Rig]:
    """A speculator whose pod serves version 0, and whose trainer has a hundredth of a core."""
    body = spec(operator.s3, replicas=1)
    (trainer,) = body["training"]["template"]["spec"]["containers"]
    trainer["resources"] = {"requests": {"cpu": "10m"}}
    with operator.speculator_with_a_draft(NAME, body):
        operator.wait(NAME, "a pod", lambda s: s.updated == "1/1", 120)
        yield operator


def patch(rig: Rig, body: dict[str, Any], *options: str) -> None:
    """Merge ``body`` into the resource."""
    target = ("auroraspeculator", NAME, "-n", rig.namespace)
    rig.cluster.kubectl("patch", *target, "--type=merge", "-p", json.dumps(body), *options)


def trainer_is_suspended(rig: Rig) -> bool:
    """Whether the settings in the trainer's Deployment say that it waits."""
    pod = rig.read(DEPLOYMENT, f"{NAME}-trainer")["spec"]["template"]["spec"]
    (text,) = [v["value"] for v in pod["containers"][0]["env"] if v["name"] == "AURORA_SETTINGS"]
    return TrainerSettings.from_json(text).training.suspended


def has_event(rig: Rig, reason: str) -> bool:
    return any(event["reason"] == reason for event in rig.events(NAME))


def trainer_reason(status: SpeculatorStatus) -> str:
    return next(c.reason for c in status.conditions if c.type == "TrainerReady")


def test_training_is_suspended_for_its_worth_and_a_person_resumes_it(rig: Rig) -> None:
    worth = rig.status(NAME).training.worth
    assert (worth.cost_seconds_per_day, worth.cost_device) == (864, "cpu")
    assert worth.saved_seconds_per_day is None, "the stand-in of the agent has no estimate"
    patch(rig, {"spec": {"training": {"suspendWhen": {"candidatesWithoutGain": 3}}}})
    rig.wait(NAME, "the first hour", lambda s: s.training.worth.since is not None, 90)
    assert not trainer_is_suspended(rig)
    long_ago = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    done = {"status": {"training": {"worth": {"since": long_ago, "measuredWithoutGain": 3}}}}
    patch(rig, done, "--subresource=status")
    rig.wait(NAME, "suspension", lambda s: s.training.worth.suspended_for is SuspensionReason.NO_GAIN, timeout=90)
    wait_until("a trainer that waits", lambda: trainer_is_suspended(rig), 90)
    wait_until("an event", lambda: has_event(rig, "TrainingSuspended"), 30)
    status = rig.wait(NAME, "the condition", lambda s: trainer_reason(s) == "NotWorthItsCost", 120)
    assert status.updated == "1/1", "serving goes on"
    patch(rig, {"spec": {"training": {"suspendWhen": None}}})
    rig.wait(NAME, "resumption", lambda s: s.training.worth.suspended_for is None, 90)
    wait_until("a trainer that trains", lambda: not trainer_is_suspended(rig), 90)
    wait_until("an event", lambda: has_event(rig, "TrainingResumed"), 30)
