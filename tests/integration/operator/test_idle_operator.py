"""The operator as a process on a real API server and a real store: what a speculator at rest costs, by the audit log.

No node exists, so the test writes the pod's and the workloads' status as their controllers would. A stand-in agent
answers at the pod's address, which is on the loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aurora_api.crd import FILE, REPOSITORY
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.metadata import COMMON_LABELS, INFERENCE
from aurora_operator.reconciler import REST_POLL_SECONDS
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import ObjectStore, StoreConfig
from aurora_store.keys import root
from tests.assets.s3 import S3
from tests.cluster.command import wait_until
from tests.rig.api_server import ApiServer, api_server, free_ports
from tests.rig.quick_operator import LONGEST_REST_SECONDS
from tests.unit.operator.worlds import lineage, registration

NAMESPACE, NAME = "idle-test", "chat"
POD_IP = "::1"
REPLICA_SET = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{NAME}-1", "uid": "1", "controller": True}
"""The owner of the pod. No controller runs here, so it need not exist."""
"""IPv6, so that a stand-in which another test binds to all IPv4 addresses is not in the way."""
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
AGENT = f"""
import http.server, json, socket
STATE = {{"pod": "chat-0", "boot": "b", "engineReady": True, "lineage": 1, "version": 0, "checksum": "sum-0",
         "swap": {{"phase": "Idle"}}, "live": {{"tokens": 200, "rounds": 100, "requests": 10}}}}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = json.dumps(STATE).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

Server(("{POD_IP}", 8471), Handler).serve_forever()
"""
"""A stand-in for the agent: always serves version 0, without traffic."""


@dataclass
class Rig:
    """The API server with its audit log, and the operator's process."""

    server: ApiServer
    audit: Path
    log: Path
    health_port: int

    def get(self, *arguments: str) -> Any:
        return self.server.get(*arguments, "-n", NAMESPACE)

    def status(self) -> SpeculatorStatus:
        return SpeculatorStatus.model_validate(self.get("auroraspeculator", NAME).get("status") or {})

    def calls(self, since: int) -> Counter[tuple[str, str]]:
        """The operator's calls after byte ``since`` of the audit log, by verb and resource.

        Without the calls of the election: the leader renews its Lease on a clock, whatever the speculators do.
        """
        events = [json.loads(line) for line in self.audit.read_bytes()[since:].splitlines()]
        ours = [event for event in events if event.get("userAgent", "").startswith(("aurora-operator", "kopf"))]
        found = [(e["verb"], (e.get("objectRef") or {}).get("resource", e["requestURI"])) for e in ours]
        assert found, "the audit log names no call of the operator, so the filter does not know its name"
        return Counter(call for call in found if call[1] != "leases")

    def patch_status(self, kind: str, name: str, **status: Any) -> None:
        patch = json.dumps({"status": status})
        self.server.kubectl(
            "patch", kind, name, "-n", NAMESPACE, "--subresource=status", "--type=merge", f"--patch={patch}"
        )


def spec(s3: S3) -> dict[str, Any]:
    credentials = {"secretRef": {"name": "s3"}}
    return {
        "target": {"model": "org/model"},
        "store": {"bucket": "idle-test", "endpoint": s3.endpoint, "credentials": credentials},
        "serving": {"replicas": 1},
    }


@pytest.fixture(scope="module", name="rig")
def _rig(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("idle")
    (folder / "policy.json").write_text(json.dumps(AUDIT_POLICY))
    audit, log = folder / "audit.log", folder / "operator.log"
    flags = (f"--audit-policy-file={folder / 'policy.json'}", f"--audit-log-path={audit}")
    health_port, metrics_port = free_ports(2)
    with api_server(flags=flags) as server, log.open("wb") as output:
        server.kubectl("apply", "--server-side", "-f", FILE)
        server.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")
        server.kubectl("create", "namespace", NAMESPACE)
        server.kubectl("create", "serviceaccount", "default", "-n", NAMESPACE)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": NAMESPACE}}
        server.apply(secret | {"stringData": s3.environment()})
        environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(server.kubeconfig),
            "AURORA_METRICS_PORT": str(metrics_port),
            "AURORA_HEALTH_PORT": str(health_port),
            "AURORA_AGENT_IMAGE": "agent:1",
            "AURORA_RUNTIME_IMAGE": "runtime:1",
        }
        agent = subprocess.Popen([sys.executable, "-c", AGENT])
        command = [sys.executable, "-m", "tests.rig.quick_operator"]
        operator = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY)
        try:
            yield Rig(server, audit, log, health_port)
        finally:
            for process in (operator, agent):
                process.terminate()
                process.wait(30)


def make_ready(rig: Rig, s3: S3) -> None:
    """A speculator whose pod serves the initial draft. The test stands in for trainer, kubelet and controllers."""
    metadata = {"name": NAME, "namespace": NAMESPACE}
    rig.server.apply(
        {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator", "metadata": metadata, "spec": spec(s3)}
    )
    config = StoreConfig(**vars(s3.config(bucket="idle-test", root=root("aurora", None, NAMESPACE, NAME))))
    objects = ObjectStore(config)
    objects.ensure_bucket()
    registry = PodRegistry(objects)
    registry.create_lineage(lineage())
    registry.register(registration(0))
    wait_until("both Deployments", lambda: len(rig.get("deployments")["items"]) == 2, 60)
    workload = {"observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}
    rig.patch_status("deployment", NAME, **workload)
    rig.patch_status("deployment", f"{NAME}-trainer", **workload)
    labels = COMMON_LABELS | rig.get("deployment", NAME)["spec"]["selector"]["matchLabels"] | {"pod-template-hash": "1"}
    assert labels["app.kubernetes.io/component"] == INFERENCE
    containers = [{"name": "sglang", "image": "runtime:1"}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{NAME}-0", "namespace": NAMESPACE, "labels": labels, "ownerReferences": [REPLICA_SET]},
    }
    rig.server.apply(pod | {"spec": {"containers": containers}})
    conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready")]
    rig.patch_status("pod", f"{NAME}-0", podIP=POD_IP, podIPs=[{"ip": POD_IP}], phase="Running", conditions=conditions)


def is_ready(status: SpeculatorStatus) -> bool:
    ready = any(c.type == "Ready" and c.status == "True" for c in status.conditions)
    return ready and status.updated == "1/1"


def test_a_speculator_becomes_ready(rig: Rig, s3: S3) -> None:
    make_ready(rig, s3)
    try:
        wait_until("Ready, with an agent that answers", lambda: is_ready(rig.status()), 60)
    except RuntimeError:
        pytest.fail(f"{rig.status().model_dump_json(indent=1)}\n{rig.log.read_text()[-3000:]}")
    with urllib.request.urlopen(f"http://127.0.0.1:{rig.health_port}/healthz", timeout=10) as answer:
        assert answer.status == 200


def test_a_speculator_at_rest_costs_at_most_three_reads_a_minute_and_no_write(rig: Rig) -> None:
    """The window holds several reconciles at rest. The real pauses are longer, and a reconcile reads as much."""
    time.sleep(10)
    before = rig.audit.stat().st_size
    time.sleep(3 * LONGEST_REST_SECONDS)
    calls = rig.calls(before)
    reads = {call: count for call, count in calls.items() if call[0] != "watch"}
    assert {verb for verb, _ in reads} == {"get", "list"}, f"{calls}\n{rig.log.read_text()[-3000:]}"
    reconciles = calls["get", "auroraspeculators"]
    assert reconciles >= 3
    assert sum(reads.values()) / reconciles * 60 / REST_POLL_SECONDS <= 3


def test_a_changed_spec_is_applied_at_once_and_a_changed_child_is_put_right(rig: Rig) -> None:
    started = time.monotonic()
    patch = json.dumps({"spec": {"serving": {"replicas": 2}}})
    rig.server.kubectl("patch", "auroraspeculator", NAME, "-n", NAMESPACE, "--type=merge", f"--patch={patch}")
    wait_until("two replicas", lambda: rig.get("deployment", NAME)["spec"]["replicas"] == 2, 20)
    assert time.monotonic() - started < 10, "not at the next resync"
    rig.server.kubectl("delete", "service", NAME, "-n", NAMESPACE)
    wait_until(
        "the Service again", lambda: any(s["metadata"]["name"] == NAME for s in rig.get("services")["items"]), 20
    )


def test_a_deleted_speculator_leaves_no_series_behind(rig: Rig) -> None:
    rig.server.kubectl("delete", "auroraspeculator", NAME, "-n", NAMESPACE)
    time.sleep(5)
    before = rig.audit.stat().st_size
    time.sleep(5)
    assert {call for call in rig.calls(before) if call[0] != "watch"} == set()
    assert [line for line in rig.log.read_text().splitlines() if '"severity": "error"' in line] == []
