"""Two installations of the operator in one namespace: the one that acts goes on, and the other waits for its end.

The tests run in their order: each one begins where the former one ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from aurora_api.crd import crd
from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import DEPLOYMENT
from tests.rig.api_server import api_server
from tests.rig.operator_replicas import NAME, NAMESPACE, OperatorReplica, OperatorRig, seconds_until
from tests.rig.quick_operator import CHALLENGE_SECONDS, LONGEST_PAUSE_SECONDS, LONGEST_REST_SECONDS

OTHER_NAMESPACE = "other-system"
FIRST_IMAGE, SECOND_IMAGE = "aurora.test/runtime:first", "aurora.test/runtime:second"
QUICK = "tests.rig.quick_operator"
FIRST_NAME, SECOND_NAME = "aurora-system/aurora-operator", f"{OTHER_NAMESPACE}/aurora-operator"
QUIET_SECONDS = LONGEST_REST_SECONDS + 2
"""Longer than the time between two reconciles of either installation, and than several challenges."""
TAKEOVER_SECONDS = CHALLENGE_SECONDS + LONGEST_PAUSE_SECONDS + 60
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
        rig.replica("first", QUICK, AURORA_RUNTIME_IMAGE=FIRST_IMAGE, AURORA_LEASE_SECONDS="3") as first,
        rig.replica(
            "second", QUICK, AURORA_RUNTIME_IMAGE=SECOND_IMAGE, AURORA_LEASE_SECONDS="3", POD_NAMESPACE=OTHER_NAMESPACE
        ) as second,
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


def older_definition(*unknown: str) -> dict[str, Any]:
    """The CRD without these fields of the status."""
    definition = crd()
    (version,) = definition["spec"]["versions"]
    for name in unknown:
        del version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"][name]
    return definition


def test_a_newcomer_asks_yields_and_rewrites_nothing(
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
    assert message.startswith(f"operator {FIRST_NAME} (version ")
    assert f"operator {SECOND_NAME} (version " in message
    assert f"{NAMESPACE}/{NAME}: {message}" in second.log_lines("WARNING")
    assert (first.yielded(), second.yielded()) == (0, 1)
    assert (first.leads(), second.leads()) == (True, True), "each holds a Lease of its own"


def test_the_newcomer_acts_by_itself_once_the_first_installation_is_gone(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, second = installations
    first.end()
    took = seconds_until(lambda: image(rig) == SECOND_IMAGE, TAKEOVER_SECONDS, "the second installation acts")
    assert took > CHALLENGE_SECONDS - LONGEST_PAUSE_SECONDS
    assert acting_installation(rig) == SECOND_NAME
    seconds_until(lambda: second.yielded() == 0, 60, "its metric says so")


def test_an_installation_that_was_cut_off_yields_when_it_is_back(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, second = installations
    first.start()
    seconds_until(lambda: first.yielded() == 1, START_SECONDS, "the first installation yields")
    second.proxy.cut()
    seconds_until(lambda: image(rig) == FIRST_IMAGE, TAKEOVER_SECONDS, "the first installation acts")
    second.proxy.mend()
    seconds_until(lambda: second.yielded() == 1, START_SECONDS, "the second installation yields")
    rig.scale(3)
    seconds_until(lambda: rig.scaled_to(3), START_SECONDS, "the first installation goes on")
    assert (image(rig), acting_installation(rig)) == (FIRST_IMAGE, FIRST_NAME)


def test_a_definition_without_the_challenge_makes_a_newcomer_yield_with_the_reason(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    _, second = installations
    second.end()
    rig.server.apply(older_definition("operatorChallenge"))
    second.start()
    seconds_until(lambda: second.yielded() == 1, START_SECONDS, "the second installation yields")
    assert any("cannot write status.operatorChallenge" in message for message in rig.events("OperatorYielded"))
    rig.scale(2)
    seconds_until(lambda: rig.scaled_to(2), START_SECONDS, "the first installation goes on")
    assert acting_installation(rig) == FIRST_NAME


def test_an_operator_whose_name_is_dropped_acts_and_says_so(
    rig: OperatorRig, installations: tuple[OperatorReplica, OperatorReplica]
) -> None:
    first, second = installations
    first.end()
    second.end()
    rig.server.apply(older_definition("operator", "operatorChallenge"))
    first.start()
    rig.scale(1)
    seconds_until(lambda: rig.scaled_to(1), START_SECONDS, "the first installation acts")
    assert any("cannot write status.operator" in line for line in first.log_lines("WARNING"))
