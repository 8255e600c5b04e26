"""A draft's life whose measurement borrows a replica (``validation.where: Replica``), on a real cluster under traffic.

The Service must lose the lent pod before a draft on trial is in it, and get it back with the draft that it served,
whoever dies meanwhile. Clients see nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_operator.kubernetes_api import Resource as Kind
from tests.assets.trained_draft import nudge
from tests.faults.fault_rig import NAME, Stage
from tests.faults.results_table import Entry
from tests.rig.fault_injection import kill_container, kill_operator
from tests.traffic.prompts import Domain

pytestmark = pytest.mark.timeout(3600)
SLICE = Kind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")

REQUESTS = 300
"""Of these enough are held out for a measurement: one that fails for the lack of prompts gives its replica back."""

Strike = Callable[[Stage, str], None]


def _agent(stage: Stage, lent: str) -> None:
    kill_container(stage.aurora, lent, "agent")


def _engine(stage: Stage, lent: str) -> None:
    kill_container(stage.aurora, lent, "sglang")


def _driver(stage: Stage, lent: str) -> None:
    del lent
    (pod,) = stage.component("validator")
    kill_container(stage.aurora, pod["metadata"]["name"], "validator")


def _operator(stage: Stage, lent: str) -> None:
    del lent
    kill_operator(stage.aurora)


FAULTS: dict[str, Strike | None] = {
    "none": None,
    "kill -9 operator": _operator,
    "kill -9 driver": _driver,
    "kill -9 agent": _agent,
    "kill -9 sglang": _engine,
}


@pytest.fixture
def lending(stage: Stage) -> Iterator[Stage]:
    stage.wait_active(0)
    stage.wait("prompts to measure with", lambda: stage.driver.summary().requests > REQUESTS)
    stage.patch(
        {
            # As in production, one life measures the engine without the draft for the next ones: else it is started
            # anew twice in every life, and kubelet waits ever longer before it does.
            "validation": {"where": "Replica", "baselineMaxAgeSeconds": 7200},
            "rollout": {"analysis": {"failureLimit": 9}},
        }
    )
    yield stage
    stage.patch({"validation": {"where": "Job", "baselineMaxAgeSeconds": 0}})


@pytest.mark.parametrize("name", FAULTS)
def test_a_draft_is_measured_on_a_lent_replica_and_rolls_out(name: str, lending: Stage, folder: Path) -> None:
    stage, strike = lending, FAULTS[name]
    before = stage.driver.summary()
    version = stage.offer(nudge(stage.specialists[Domain.EXTRACTION], folder, seed=200 + len(stage.entries)))
    stage.wait("a replica is lent", lambda: bool(_lent(stage)))
    lent = _lent(stage)
    stage.wait("it has left the Service", lambda: lent not in _served(stage))
    assert len(_served(stage)) == 1
    stage.wait("the driver measures on it", lambda: _runs(stage))
    if strike is not None:
        strike(stage, lent)
    seconds = stage.wait("both replicas serve again", lambda: len(_served(stage)) == 2)
    stage.wait_active(version)
    after = stage.driver.summary()
    stage.entries.append(
        Entry(
            f"measured on a replica, {name}",
            "Validating",
            seconds,
            after.requests - before.requests,
            sum(after.broken.values()) - sum(before.broken.values()),
            after.failed - before.failed,
            stage.state(),
        )
    )
    print(stage.entries[-1], flush=True)
    assert after.failed == before.failed
    assert after.broken == before.broken, "a pod that is measured answers nobody, so nobody is cut off"
    stage.annotate("abort", version)
    stage.wait_active(0)


def _lent(stage: Stage) -> str:
    candidate = stage.status().get("candidate") or {}
    return str(candidate.get("pod") or "")


def _served(stage: Stage) -> list[str]:
    """The pods to which the Service sends requests."""
    found = stage.kube.list(SLICE, stage.aurora.namespace, f"kubernetes.io/service-name={NAME}")
    return [
        endpoint["targetRef"]["name"]
        for one in found
        for endpoint in one.get("endpoints") or []
        if endpoint["conditions"].get("ready")
    ]


def _runs(stage: Stage) -> bool:
    """Whether the driver has begun: its container runs."""
    return any(
        status.get("started")
        for pod in stage.component("validator")
        for status in pod["status"].get("containerStatuses", [])
    )
