"""A draft's life when its measurement borrows a replica (``measureOn: Replica``), on a real cluster under load.

The Service must drop the lent pod before the pod loads the draft under test. The pod must return to the Service with
the draft that it served before, whichever part dies meanwhile. Clients must notice nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_operator.kubernetes_api import Resource as ResourceKind
from tests.assets.trained_draft import write_perturbed_copy
from tests.faults.fault_rig import NAME, FaultRig
from tests.faults.results_table import ClientCounts, FaultResult
from tests.rig.fault_injection import kill_container, kill_operator
from tests.traffic.prompts import Domain

pytestmark = [pytest.mark.timeout(3600), pytest.mark.usefixtures("reject_newest_version_afterwards")]
ENDPOINT_SLICE = ResourceKind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")

MIN_REQUESTS = 300
"""After so many requests, enough are held out for a measurement. A measurement without prompts fails and returns the
replica at once."""

CauseFault = Callable[[FaultRig, str], None]
"""Causes a fault, given the name of the lent pod."""


def _kill_agent(rig: FaultRig, lent_pod: str) -> None:
    kill_container(rig.aurora, lent_pod, "agent")


def _kill_engine(rig: FaultRig, lent_pod: str) -> None:
    kill_container(rig.aurora, lent_pod, "sglang")


def _kill_validator(rig: FaultRig, lent_pod: str) -> None:
    del lent_pod
    (pod,) = rig.component_pods("validator")
    kill_container(rig.aurora, pod["metadata"]["name"], "validator")


def _kill_operator(rig: FaultRig, lent_pod: str) -> None:
    del lent_pod
    kill_operator(rig.aurora)


FAULTS: dict[str, CauseFault | None] = {
    "none": None,
    "kill -9 operator": _kill_operator,
    "kill -9 validator": _kill_validator,
    "kill -9 agent": _kill_agent,
    "kill -9 sglang": _kill_engine,
}


@pytest.fixture
def lending_rig(rig: FaultRig) -> Iterator[FaultRig]:
    """The rig, with measurements on a lent replica."""
    rig.wait_until_serving(0)
    rig.wait_until("enough held-out requests", lambda: rig.driver.summary().requests > MIN_REQUESTS)
    rig.patch(
        {
            "validation": {"measureOn": "Replica"},
            "rollout": {"analysis": {"failureLimit": 9}},
        }
    )
    yield rig
    rig.patch({"validation": {"measureOn": "Job"}})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_draft_is_measured_on_a_lent_replica_and_rolls_out(
    fault: str, lending_rig: FaultRig, draft_folder: Path
) -> None:
    rig, cause = lending_rig, FAULTS[fault]
    before = rig.driver.summary()
    version = rig.offer(
        write_perturbed_copy(rig.specialists[Domain.EXTRACTION], draft_folder, seed=200 + len(rig.results))
    )
    rig.wait_until("a replica is lent", lambda: bool(_lent_pod(rig)))
    lent_pod = _lent_pod(rig)
    rig.wait_until(f"{lent_pod} has left the Service", lambda: lent_pod not in _endpoints(rig))
    assert len(_endpoints(rig)) == 1
    rig.wait_until("the validator has started", lambda: _validator_has_started(rig))
    if cause is not None:
        cause(rig, lent_pod)
    seconds = rig.wait_until("both replicas serve again", lambda: len(_endpoints(rig)) == 2)
    rig.wait_until_serving(version)
    after = rig.driver.summary()
    clients = ClientCounts.between(before, after)
    result = FaultResult(f"measured on a replica, {fault}", "Validating", seconds, clients, rig.state())
    rig.results.append(result)
    print(result, flush=True)
    assert after.failed == before.failed
    assert after.retries == before.retries, "a lent pod answers no client, so no client may lose its connection"
    rig.annotate("abort", version)
    rig.wait_until_serving(0)


def _lent_pod(rig: FaultRig) -> str:
    candidate = rig.status().get("candidate") or {}
    return str(candidate.get("pod") or "")


def _endpoints(rig: FaultRig) -> list[str]:
    """The pods to which the Service sends requests."""
    slices = rig.kube.list(ENDPOINT_SLICE, rig.aurora.namespace, f"kubernetes.io/service-name={NAME}")
    return [
        endpoint["targetRef"]["name"]
        for endpoint_slice in slices
        for endpoint in endpoint_slice.get("endpoints") or []
        if endpoint["conditions"].get("ready")
    ]


def _validator_has_started(rig: FaultRig) -> bool:
    return any(
        status.get("started")
        for pod in rig.component_pods("validator")
        for status in pod["status"].get("containerStatuses", [])
    )
