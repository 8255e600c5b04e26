"""Pods serve although no draft can be had: the trainer never runs, its head cannot be used, or the store is away."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.assets.pod_processes import http_body
from tests.faults.fault_kinds import STORE_PORT
from tests.faults.fault_rig import NAME, FaultRig
from tests.rig.fault_injection import PacketFilter, drop_packets
from tests.rig.installation import RESOURCE
from tests.rig.running_speculator import Resource
from tests.rig.small_speculator import MODEL_PATH

pytestmark = pytest.mark.timeout(2400)
START_SECONDS = 900.0
NO_TRAINER = {"template": {"spec": {"containers": [{"name": "trainer", "image": "registry.invalid/no-trainer:1"}]}}}
NO_HEAD = {"initial": {"model": MODEL_PATH}}
"""The target is no EAGLE-3 head."""


def _condition(resource: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = resource.get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {"status": "Unknown", "reason": "", "message": ""})


@pytest.mark.parametrize(
    ("name", "spec", "why"),
    [
        ("no-trainer", {"training": NO_TRAINER}, "Image"),
        ("no-head", {"draft": NO_HEAD}, "cannot be used"),
    ],
)
def test_a_new_speculator_serves_without_a_draft_and_says_why(
    rig: FaultRig, name: str, spec: dict[str, Any], why: str
) -> None:
    aurora = rig.aurora
    aurora.apply(name, spec | {"serving": {"replicas": 1}})
    try:
        resource = aurora.wait_until(
            name,
            "its pod serves, and the status says why without a draft",
            lambda cr: (
                _condition(cr, "ServingReady")["reason"] == "WithoutDraft"
                and why in _condition(cr, "ServingReady")["message"]
            ),
            START_SECONDS,
        )
        assert _condition(resource, "Ready")["status"] == "True"
        assert _condition(resource, "TrainerReady")["status"] == "False"
        assert [pod["state"] for pod in resource["status"]["pods"]] == ["WithoutDraft"]
        body = {"model": "default", "prompt": "1 2 3", "max_tokens": 8, "temperature": 0}
        assert b"choices" in http_body(f"{aurora.url(name)}/v1/completions", body)
    finally:
        aurora.cluster.kubectl("delete", RESOURCE, name, "-n", aurora.namespace, "--timeout=120s")


def test_pods_that_start_while_the_store_is_away_serve_and_take_the_active_draft_afterwards(rig: FaultRig) -> None:
    """One is added as an autoscaler adds it. The others are evicted one by one, as when their node is drained."""
    active, former = rig.status()["active"]["version"], [pod["metadata"]["name"] for pod in _inference_pods(rig)]
    rig.wait_until_serving(active)
    failed = rig.driver.summary().failed
    try:
        with drop_packets(rig.aurora, [rig.store_pod()], PacketFilter("INPUT", STORE_PORT)):
            rig.aurora.cluster.kubectl("scale", RESOURCE, NAME, "-n", rig.aurora.namespace, "--replicas=3")
            _wait_for_pods_without_draft(rig, 1)
            for number, pod in enumerate(former, 2):
                rig.wait_until("the disruption budget allows an eviction", partial(rig.evict, pod))
                _wait_for_pods_without_draft(rig, number)
        rig.wait_until("every pod serves the active version", lambda: _versions(rig) == [active] * 3)
        assert not {pod["metadata"]["name"] for pod in _inference_pods(rig)} & set(former)
        assert rig.driver.summary().failed == failed
    finally:
        rig.patch({"serving": {"replicas": 2}})
        rig.wait_until_serving(active)


def _inference_pods(rig: FaultRig) -> list[Resource]:
    return rig.component_pods("inference")


def _wait_for_pods_without_draft(rig: FaultRig, count: int) -> None:
    rig.wait_until(f"{count} pods serve without a draft", lambda: _states(rig).count("WithoutDraft") == count)


def _states(rig: FaultRig) -> list[str]:
    return [pod["state"] for pod in rig.status().get("pods", [])]


def _versions(rig: FaultRig) -> list[int | None]:
    return [pod.get("version") for pod in rig.status().get("pods", [])]
