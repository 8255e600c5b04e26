"""Two installations of the operator in one namespace: the one that acts goes on, and the other yields.

The tests run in their order: each one begins where the former one ended.
"""

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
FIRST_NAME, SECOND_NAME = "aurora-system/aurora-operator", f"{OTHER_NAMESPACE}/aurora-operator"
QUIET_SECONDS = LONGEST_REST_SECONDS + 2
"""Longer than the time between two reconciles of either installation."""
START_SECONDS = 180


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
    """Two installations with different images. The first one acts. The second one is not started yet."""
    with (
        rig.replica("first", QUICK, AURORA_RUNTIME_IMAGE=FIRST_IMAGE) as first,
        rig.replica("second", QUICK, AURORA_RUNTIME_IMAGE=SECOND_IMAGE, POD_NAMESPACE=OTHER_NAMESPACE) as second,
    ):
        first.start()
        seconds_until(lambda: image(rig) == FIRST_IMAGE, START_SECONDS, "the first installation acts")
        seconds_until(lambda: rig.deployment() is not None, START_SECONDS, "the Deployment")
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


def test_a_newcomer_yields_says_so_and_rewrites_nothing(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, second = installations
    time.sleep(QUIET_SECONDS)
    settled = generations(rig)
    revision = rig.api.get(DEPLOYMENT, NAMESPACE, f"{NAME}-trainer")["metadata"]["resourceVersion"]
    second.start()
    seconds_until(lambda: second.yielded() == 1, START_SECONDS, "the second installation yields")
    time.sleep(QUIET_SECONDS)
    assert generations(rig) == settled
    assert rig.api.get(DEPLOYMENT, NAMESPACE, f"{NAME}-trainer")["metadata"]["resourceVersion"] == revision
    assert (image(rig), acting_installation(rig)) == (FIRST_IMAGE, FIRST_NAME)
    (message,) = rig.events("OperatorYielded")
    assert FIRST_NAME in message
    assert SECOND_NAME in message
    assert (first.yielded(), second.yielded()) == (0, 1)
    assert (first.leads(), second.leads()) == (True, True), "each holds a Lease of its own"


def test_a_person_hands_the_speculator_over_once_the_first_installation_is_gone(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, second = installations
    first.end()
    time.sleep(QUIET_SECONDS)
    assert (image(rig), acting_installation(rig)) == (FIRST_IMAGE, FIRST_NAME), "nobody takes over by itself"
    patch = '{"status":{"operator":null}}'
    (message,) = rig.events("OperatorYielded")
    command = f"kubectl patch auroraspeculator {NAME} -n {NAMESPACE} --subresource=status --type=merge -p '{patch}'"
    assert command in message
    rig.server.kubectl(*command.replace("'", "").split()[1:])
    seconds_until(lambda: image(rig) == SECOND_IMAGE, START_SECONDS, "the second installation acts")
    assert acting_installation(rig) == SECOND_NAME
    seconds_until(lambda: second.yielded() == 0, 60, "its metric says so")


def test_an_installation_that_comes_back_yields(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, _ = installations
    first.start()
    seconds_until(lambda: first.yielded() == 1, START_SECONDS, "the first installation yields")
    rig.scale(3)
    seconds_until(lambda: rig.scaled_to(3), START_SECONDS, "the second installation goes on")
    assert (image(rig), acting_installation(rig)) == (SECOND_IMAGE, SECOND_NAME)
