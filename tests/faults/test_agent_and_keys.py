"""What stands beside a serving engine may fail, and clients notice nothing: a crashed agent, and rotated store keys."""

from __future__ import annotations

import base64
import json

import pytest

from tests.faults.fault_rig import FaultRig
from tests.rig.running_speculator import Resource

pytestmark = pytest.mark.timeout(1800)
KILL_AGENT = """
import os, pathlib, signal
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    pid, parent = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()[1]
    if parent == "1" and b"aurora_runtime.serving.agent" in (stat.parent / "cmdline").read_bytes():
        os.kill(pid, signal.SIGKILL)
        print(pid)
"""
CRASHES = 4
"""After so many crashes the agent is away for 15 s in all, which a pod's readiness would show."""
REST_SECONDS = 400
"""Nothing tells an operator at rest that a Secret was changed. It looks after 300 s at the latest."""
SECRET = "aurora-store"  # noqa: S105 - the name of the speculator's Secret


def _restarts(rig: FaultRig) -> dict[str, int]:
    return {
        f"{pod['metadata']['uid']}/{status['name']}": status["restartCount"]
        for pod in rig.pods()
        for status in pod["status"].get("containerStatuses", [])
    }


def _ready_since(pod: Resource) -> tuple[str, str]:
    (ready,) = (each for each in pod["status"]["conditions"] if each["type"] == "Ready")
    return ready["status"], ready["lastTransitionTime"]


def _inference_pod(rig: FaultRig, name: str) -> Resource:
    return next(pod for pod in rig.component_pods("inference") if pod["metadata"]["name"] == name)


def _kill_agent(rig: FaultRig, pod: str) -> bool:
    """Kill the agent's process, and not its container. Returns whether there was one."""
    where = ("exec", "-n", rig.aurora.namespace, pod, "-c", "agent", "--")
    return bool(rig.aurora.cluster.kubectl(*where, "python", "-c", KILL_AGENT).strip())


def test_an_agent_that_crashes_again_and_again_leaves_its_pod_in_the_service(rig: FaultRig) -> None:
    rig.wait_until_serving(0)
    pod = rig.component_pods("inference")[0]
    name, clients, restarts = pod["metadata"]["name"], rig.driver.summary(), _restarts(rig)
    assert _ready_since(pod)[0] == "True"
    for _ in range(CRASHES):
        rig.wait_until("the agent runs", lambda: _kill_agent(rig, name), 120)
    rig.wait_until_serving(0)
    assert _ready_since(_inference_pod(rig, name)) == _ready_since(pod), "the pod left the Service"
    assert _restarts(rig) == restarts
    assert rig.driver.summary().failed == clients.failed
    assert rig.driver.summary().retries == clients.retries


def _write_keys(rig: FaultRig, data: dict[str, str]) -> None:
    patch = json.dumps({"data": data})
    rig.aurora.cluster.kubectl(
        "patch", "secret", SECRET, "-n", rig.aurora.namespace, "--type=merge", f"--patch={patch}"
    )


def _storage(rig: FaultRig) -> tuple[str, str]:
    (storage,) = (each for each in rig.status()["conditions"] if each["type"] == "StorageReady")
    return storage["status"], storage["reason"]


def _shards(rig: FaultRig) -> int:
    return len(rig.registry.list_shards(1).data_bytes)


def test_keys_that_are_corrected_are_used_without_a_restart_while_clients_are_served(rig: FaultRig) -> None:
    """Wrong keys stop uploads, and the right ones start them again. No container restarts."""
    rig.wait_until_serving(0)
    clients, restarts = rig.driver.summary(), _restarts(rig)
    right = rig.aurora.cluster.get("secret", SECRET, "-n", rig.aurora.namespace)["data"]
    try:
        _write_keys(rig, {"AWS_SECRET_ACCESS_KEY": base64.b64encode(b"wrong").decode()})
        rig.wait_until("shards wait in the pods", lambda: _waiting_shards(rig) > 0, 300)
        rig.wait_until("the status says so", lambda: _storage(rig)[0] == "False", REST_SECONDS)
    finally:
        _write_keys(rig, {"AWS_SECRET_ACCESS_KEY": right["AWS_SECRET_ACCESS_KEY"]})
    uploaded = _shards(rig)
    rig.wait_until("the operator uses the right keys", lambda: _storage(rig)[0] == "True", REST_SECONDS)
    rig.wait_until("the pods use the right keys", lambda: _shards(rig) > uploaded, 300)
    assert _restarts(rig) == restarts
    assert rig.driver.summary().failed == clients.failed
    assert rig.driver.summary().retries == clients.retries


def _waiting_shards(rig: FaultRig) -> int:
    """Complete shards in the spools of the pods, without one for each pod that may be on its way."""
    found = 0
    for pod in rig.component_pods("inference"):
        where = ("exec", "-n", rig.aurora.namespace, pod["metadata"]["name"], "-c", "agent", "--")
        count = "import pathlib; print(len(list(pathlib.Path('/var/lib/aurora/spool').glob('*.json'))))"
        found += max(int(rig.aurora.cluster.kubectl(*where, "python", "-c", count)) - 1, 0)
    return found
