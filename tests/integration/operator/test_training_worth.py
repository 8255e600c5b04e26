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
from aurora_protocol.pod_settings import TrainerSettings
from tests.assets.s3 import S3, seaweedfs
from tests.cluster.cluster import Cluster
from tests.cluster.command import wait_until
from tests.cluster.fixture import cluster
from tests.cluster.images.image_build import python_image
from tests.integration.operator.operator_rig import IMAGE, PYTHON, Rig, install_crd, namespace, report_training, spec
from tests.unit.operator.worlds import lineage, registration

__all__ = ["cluster"]

NAMESPACE, NAME = "training-worth-test", "chat"


@pytest.fixture(scope="module", name="s3")
def _s3() -> Iterator[S3]:
    with seaweedfs() as running:
        yield running


@pytest.fixture(scope="module", name="rig")
def _rig(cluster: Cluster, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A speculator whose pod serves version 0, and whose trainer has a hundredth of a core."""
    install_crd(cluster)
    folder = tmp_path_factory.mktemp("operator")
    cluster.load_image(python_image(folder / "image.tar", IMAGE, PYTHON))
    with namespace(cluster, NAMESPACE, s3):
        rig = Rig(cluster, NAMESPACE, s3, folder / "operator.log")
        rig.start()
        try:
            body = spec(s3, replicas=1)
            (trainer,) = body["training"]["template"]["spec"]["containers"]
            trainer["resources"] = {"requests": {"cpu": "10m"}}
            rig.apply(NAME, body)
            registry = rig.registry(NAME)
            report_training(registry)
            registry.create_lineage(lineage())
            registry.register(registration(0))
            rig.wait(NAME, "a pod", lambda s: s.updated == "1/1", 120)
            yield rig
        finally:
            rig.kill()


def patch(rig: Rig, body: dict[str, Any], *options: str) -> None:
    """Merge ``body`` into the resource."""
    target = ("auroraspeculator", NAME, "-n", rig.namespace)
    rig.cluster.kubectl("patch", *target, "--type=merge", "-p", json.dumps(body), *options)


def trainer_is_suspended(rig: Rig) -> bool:
    """Whether the settings in the trainer's Deployment say that it waits."""
    pod = rig.get("deployment", f"{NAME}-trainer")["spec"]["template"]["spec"]
    (text,) = [v["value"] for v in pod["containers"][0]["env"] if v["name"] == "AURORA_SETTINGS"]
    return TrainerSettings.from_json(text).training.suspended


def has_event(rig: Rig, reason: str) -> bool:
    return bool(rig.get("events", f"--field-selector=reason={reason}")["items"])


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
