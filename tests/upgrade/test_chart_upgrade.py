"""The chart is upgraded from the former version and rolled back, while clients are served by two speculators.

All tests share one run, because each restart of real engines takes minutes on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.rig.former_version import check_out_former_version
from tests.rig.installation import RESOURCE, Installation
from tests.rig.local_image import ROOT, local_image
from tests.traffic.driver import Load, RequestOptions, TrafficDriver
from tests.traffic.report import Summary

pytestmark = pytest.mark.timeout(3600)
NAMES = ("first", "second")
SPEC = {"serving": {"replicas": 1}, "training": {"publishTokens": 1_000_000_000}}
"""One replica each, and no candidates: both cores are left to the engines that restart."""
RESTART_SECONDS = 900.0
POLL_SECONDS = 1.0


@dataclass
class Run:
    """What was seen."""

    restarting_together: int = 0
    """The most speculators whose pods restarted at the same time during the upgrade."""
    kept_until_their_turn: set[str] = field(default_factory=set)
    """Speculators that said that their pods wait."""
    images_after_upgrade: set[str] = field(default_factory=set)
    images_after_rollback: set[str] = field(default_factory=set)
    traffic: dict[str, Summary] = field(default_factory=dict)


def _deployment(aurora: Installation, name: str) -> dict[str, Any]:
    found: dict[str, Any] = aurora.cluster.get("deployment", name, "-n", aurora.namespace)
    return found


def _agent_image(deployment: dict[str, Any]) -> str:
    images = {c["name"]: c["image"] for c in deployment["spec"]["template"]["spec"]["containers"]}
    return str(images["agent"])


def _is_whole(deployment: dict[str, Any]) -> bool:
    status = deployment.get("status", {})
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return bool(seen and counts == [deployment["spec"]["replicas"]] * 3)


def _waits(aurora: Installation, name: str) -> bool:
    conditions = aurora.get(name).get("status", {}).get("conditions", [])
    return any(c["type"] == "ServingReady" and c["reason"] == "WaitingForTurn" for c in conditions)


def _until_all_serve(aurora: Installation, image: str, watch: Callable[[list[dict[str, Any]]], None]) -> None:
    """Wait until every pod of both speculators runs ``image`` and is ready."""
    deadline = time.monotonic() + RESTART_SECONDS
    while True:
        deployments = [_deployment(aurora, name) for name in NAMES]
        watch(deployments)
        if all(_agent_image(found) == image and _is_whole(found) for found in deployments):
            return
        if time.monotonic() > deadline:
            shown = [(found["metadata"]["name"], _agent_image(found), found.get("status")) for found in deployments]
            raise TimeoutError(f"not every pod runs {image} after {RESTART_SECONDS:.0f} s: {shown}")
        time.sleep(POLL_SECONDS)


@pytest.fixture(scope="module")
def run(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    former = check_out_former_version(tmp_path_factory.mktemp("former"))
    former_image, _ = local_image(former)
    image, _ = local_image()
    aurora, outcome = Installation(cluster), Run()
    aurora.install(former)
    for name in NAMES:
        aurora.apply(name, SPEC)
    for name in NAMES:
        aurora.wait_until(name, "its pod serves", lambda cr: cr.get("status", {}).get("readyReplicas") == 1, 900)
    drivers = {
        name: TrafficDriver(Load(url=aurora.url(name), concurrency=1, options=RequestOptions(max_tokens=32)))
        for name in NAMES
    }
    for driver in drivers.values():
        driver.start()

    def watch(deployments: list[dict[str, Any]]) -> None:
        restarting = sum(_agent_image(found) == image and not _is_whole(found) for found in deployments)
        outcome.restarting_together = max(outcome.restarting_together, restarting)
        outcome.kept_until_their_turn |= {name for name in NAMES if _waits(aurora, name)}

    try:
        aurora.install(store_checkout=former)
        _until_all_serve(aurora, image, watch)
        outcome.images_after_upgrade = {_agent_image(_deployment(aurora, name)) for name in NAMES}
        aurora.rollback()
        _until_all_serve(aurora, former_image, lambda _: None)
        outcome.images_after_rollback = {_agent_image(_deployment(aurora, name)) for name in NAMES}
        time.sleep(10)
    finally:
        outcome.traffic = {name: driver.stop() for name, driver in drivers.items()}
    yield outcome
    for name in NAMES:
        cluster.kubectl("delete", RESOURCE, name, "-n", aurora.namespace, "--timeout=120s")


def test_no_request_failed(run: Run) -> None:
    for name, summary in run.traffic.items():
        print(name, summary)
        assert summary.requests > 20
        assert summary.failed == 0, summary.failures


def test_one_speculator_restarted_after_the_other(run: Run) -> None:
    assert run.restarting_together == 1
    assert run.kept_until_their_turn


def test_every_pod_runs_the_installed_version(run: Run) -> None:
    assert run.images_after_upgrade == {local_image(ROOT)[0]}
    assert len(run.images_after_rollback) == 1
    assert run.images_after_rollback != run.images_after_upgrade
