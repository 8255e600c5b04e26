"""Two installations of the operator that act in the same namespace: one stops, says so, and nothing is rewritten."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import DEPLOYMENT
from tests.rig.api_server import api_server
from tests.rig.operator_replicas import NAME, NAMESPACE, OperatorReplica, OperatorRig, seconds_until
from tests.rig.quick_operator import LONGEST_REST_SECONDS

OTHER_NAMESPACE = "other-system"
FIRST_IMAGE, SECOND_IMAGE = "aurora.test/runtime:first", "aurora.test/runtime:second"
QUICK = "tests.rig.quick_operator"
QUIET_SECONDS = LONGEST_REST_SECONDS + 2
"""Longer than the time between two reconciles of either installation."""


@pytest.fixture(scope="module", name="rig")
def _rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorRig]:
    folder = tmp_path_factory.mktemp("installations")
    with api_server() as server:
        rig = OperatorRig(server, folder)
        rig.prepare()
        server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OTHER_NAMESPACE}})
        rig.create_speculator()
        yield rig


@pytest.fixture(scope="module", name="installations")
def _installations(rig: OperatorRig) -> Iterator[tuple[OperatorReplica, OperatorReplica]]:
    """Two installations with different images. The second starts when the first one acts already."""
    with (
        rig.replica("first", QUICK, AURORA_RUNTIME_IMAGE=FIRST_IMAGE, AURORA_LEASE_SECONDS="3") as first,
        rig.replica(
            "second", QUICK, AURORA_RUNTIME_IMAGE=SECOND_IMAGE, AURORA_LEASE_SECONDS="3", POD_NAMESPACE=OTHER_NAMESPACE
        ) as second,
    ):
        first.start()
        seconds_until(lambda: image(rig) == FIRST_IMAGE, 60, "the first installation acts")
        second.start()
        yield first, second


def image(rig: OperatorRig) -> str:
    """The trainer's image. It follows the acting operator at once, while inference pods wait for their turn."""
    try:
        found = rig.api.get(DEPLOYMENT, NAMESPACE, f"{NAME}-trainer")
    except NotFound:
        return ""
    (container,) = found["spec"]["template"]["spec"]["containers"]
    return str(container["image"])


def generations(rig: OperatorRig) -> tuple[int, int]:
    """The generations of the Deployment and of the trainer's. Each rewrite of a template raises one."""
    deployment = rig.deployment()
    assert deployment is not None
    trainer = rig.api.get(DEPLOYMENT, NAMESPACE, f"{NAME}-trainer")
    return deployment["metadata"]["generation"], trainer["metadata"]["generation"]


def acting_installation(rig: OperatorRig) -> str:
    operator = rig.status().operator
    return operator.installation if operator is not None else ""


def test_the_installation_that_started_last_acts_and_the_other_stops(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, second = installations
    seconds_until(lambda: image(rig) == SECOND_IMAGE, 60, "the second installation acts")
    seconds_until(lambda: bool(rig.events("OperatorDisplaced")), 30, "an Event")
    time.sleep(1)
    settled = generations(rig)
    assert settled[0] <= 4, "the installations undid each other at most once"
    revision = rig.api.get(DEPLOYMENT, NAMESPACE, f"{NAME}-trainer")["metadata"]["resourceVersion"]
    time.sleep(QUIET_SECONDS)
    assert generations(rig) == settled
    assert rig.api.get(DEPLOYMENT, NAMESPACE, f"{NAME}-trainer")["metadata"]["resourceVersion"] == revision
    assert image(rig) == SECOND_IMAGE
    assert acting_installation(rig) == f"{OTHER_NAMESPACE}/aurora-operator"
    (message,) = rig.events("OperatorDisplaced")
    assert message.startswith(f"operator {OTHER_NAMESPACE}/aurora-operator (version ")
    assert "took this speculator over from operator aurora-system/aurora-operator (version " in message
    assert f"{NAMESPACE}/{NAME}: {message}" in first.log_lines("WARNING")
    assert (first.leads(), second.leads()) == (True, True), "each holds a Lease of its own"


def test_the_displaced_installation_acts_again_when_it_is_restarted_after_the_other_was_removed(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, second = installations
    seconds_until(lambda: image(rig) == SECOND_IMAGE, 60, "the second installation acts")
    second.end()
    first.end()
    first.start()
    seconds_until(lambda: image(rig) == FIRST_IMAGE, 60, "the first installation acts again")
    assert acting_installation(rig) == "aurora-system/aurora-operator"
