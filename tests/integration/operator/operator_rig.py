"""Runs the operator as a process against a real API server, with real pods whose engine and agent are stand-ins.

The stand-in agent has the real agent's HTTP API and swaps at once. It always starts on version 0. It fails to load
:data:`UNLOADABLE_VERSION`, and reports that no drafted token of :data:`DEGRADED_VERSION` is accepted. It can be
withdrawn, and its lease runs out. With stand-ins the tests take seconds. The end-to-end tests use the real engine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.config import new_client_from_config

from aurora_api import API_VERSION, KIND
from aurora_api.crd import FILE, REPOSITORY
from aurora_api.v1alpha1.conditions import Condition
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import SECRET, SPECULATOR, Object, Resource
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import ObjectStore, StoreConfig
from aurora_store.keys import root
from tests.assets.s3 import S3
from tests.assets.signing import SecretKeys
from tests.cluster.cluster import Cluster
from tests.rig.api_server import free_ports
from tests.rig.chart.rendered_chart import OPERATOR, render
from tests.rig.machine_policy import policy_for_this_machine
from tests.rig.sync_api import EVENT, LEASE, SyncApi
from tests.unit.operator.worlds import evidence, lineage, registration

BUCKET = "operator-test"
UNLOADABLE_VERSION, DEGRADED_VERSION = 3, 5
"""The stand-in agent fails to load the first, and live traffic rejects the second."""
IMAGE = "aurora.test/stand-in:1"
PYTHON = Path("/usr/bin/python3")

ENGINE = """
import http.server, urllib.request

def lent():
    with urllib.request.urlopen("http://127.0.0.1:8471/lent", timeout=2) as answer:
        return answer.read() == b"true"

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if self.path == "/ready" and lent() else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", 30000), Handler).serve_forever()
"""

AGENT = f"""
import datetime, http.server, json, os, pathlib, time
token = pathlib.Path("/etc/aurora/keys/agent-token").read_text()
me = {{"version": 0, "epoch": 0, "swap": {{"phase": "Idle"}}, "live": {{}},
      "budget": {{"tokensPerMinute": 0}}}}
lease = {{"measurement": "", "end": 0.0}}

def leased():
    return lease["end"] > time.time()

def state():
    if leased():
        status = {{"measurement": lease["measurement"], "phase": "Measuring"}}
        return {{"pod": os.environ["POD_NAME"], "boot": "", "engineReady": False, "measurement": status,
                "traceBudget": me["budget"]}}
    tokens, rounds = 10 if me["version"] == {DEGRADED_VERSION} else 20, 10  # of each of 100 requests
    ended = {{"requests": 1, "tokens": tokens, "rounds": rounds, "tokensSquared": tokens**2,
             "tokensByRounds": tokens * rounds, "roundsSquared": rounds**2}}
    live = me["live"] = {{name: me["live"].get(name, 0) + 100 * value for name, value in ended.items()}}
    return {{"pod": os.environ["POD_NAME"], "boot": "b", "engineReady": True, "lineage": 1, "live": live,
            "version": me["version"], "checksum": f"sum-{{me['version']}}", "swap": me["swap"],
            "traceBudget": me["budget"]}}

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/lent":
            return self.answer(200, leased())
        if self.headers["Authorization"] != f"Bearer {{token}}":
            return self.answer(401, {{}})
        self.answer(200, state())

    def do_PUT(self):
        if self.headers["Authorization"] != f"Bearer {{token}}":
            return self.answer(401, {{}})
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/trace-budget":
            me["budget"] = asked
            return self.answer(202, state())
        if asked["epoch"] < me["epoch"]:
            return self.answer(409, {{}})
        if self.path == "/v1/measurement":
            mine = leased() and asked["measurement"] == lease["measurement"]
            if asked["leaseSeconds"] and not mine and (leased() or not asked["begin"]):
                return self.answer(409, {{}})
            if mine or asked["leaseSeconds"]:
                lease.update(measurement=asked["measurement"], end=time.time() + asked["leaseSeconds"])
            return self.answer(202, state())
        if leased():
            return self.answer(503, {{}})
        me["epoch"] = asked["epoch"]
        now = datetime.datetime.now(datetime.UTC).isoformat()
        bad = asked["version"] == {UNLOADABLE_VERSION}
        me["swap"] = {{"phase": "Failed" if bad else "Idle", "version": asked["version"], "finished": now,
                      "epoch": me["epoch"], "error": "shapes differ" if bad else ""}}
        if not bad:
            me["version"] = asked["version"]
        self.answer(202, state())

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("0.0.0.0", 8471), Handler).serve_forever()
"""

FAILING_VALIDATOR = "open('/dev/termination-log', 'w').write('3 of 8 prompts: wait for traffic'); sys.exit(1)"
"""Always fails. A test that needs a verdict puts the evidence into the store first."""

REPLICA_VALIDATOR = """
import json, os, pathlib, time, urllib.request
replica = json.loads(os.environ["AURORA_SETTINGS"])["replica"]
token = pathlib.Path("/etc/aurora/keys/agent-token").read_text()
url = f"http://{replica['ip']}:{replica.get('agentPort', 8471)}/v1/measurement"

def lease(seconds, begin=False):
    body = {"measurement": replica["measurement"], "epoch": replica["epoch"], "leaseSeconds": seconds, "begin": begin}
    headers = {"Authorization": f"Bearer {token}"}
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers, method="PUT"))

try:
    for second in range(15):
        lease(10, begin=second == 0)
        time.sleep(1)
finally:
    lease(0)
open("/dev/termination-log", "w").write("the stand-in measures nothing")
sys.exit(1)
"""
"""Holds its replica for 15 s, or until it is told to end, or the agent refuses to renew the lease."""

EXIT_ON_SIGTERM = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
"""Without a handler, process 1 ignores SIGTERM."""


def _container(name: str, program: str) -> dict[str, Any]:
    program = EXIT_ON_SIGTERM + program
    return {"name": name, "image": IMAGE, "command": [str(PYTHON), "-u", "-c", program]}


def validation(measure_on: str) -> dict[str, Any]:
    """The part of the spec with the validator that fits."""
    validator = _container("validator", FAILING_VALIDATOR if measure_on == "Job" else REPLICA_VALIDATOR)
    return {"measureOn": measure_on, "template": {"spec": {"containers": [validator]}}}


def spec(s3: S3, replicas: int = 2, *, measure_on: str = "Job") -> dict[str, Any]:
    """The spec of a speculator whose pods run the stand-ins."""
    return {
        "target": {"model": "org/model"},
        "store": {"bucket": BUCKET, "endpoint": s3.endpoint, "credentials": {"secretRef": {"name": "s3"}}},
        "serving": {
            "replicas": replicas,
            "template": {
                "spec": {
                    "terminationGracePeriodSeconds": 6,
                    "initContainers": [_container("stage", "print('staged')")],
                    "containers": [_container("sglang", ENGINE), _container("agent", AGENT)],
                }
            },
        },
        "training": {"template": {"spec": {"containers": [_container("trainer", "import time; time.sleep(1e6)")]}}},
        "validation": validation(measure_on),
        "rollout": {"analysis": {"minRequests": 100, "watchSeconds": 3}},
    }


def report_training(registry: PodRegistry) -> None:
    """Write the record of a trainer that learns. The operator then looks for new versions every few seconds."""
    record = TrainerStatus(phase=TrainerPhase.TRAINING, step=1, shards=1, trained_tokens=1, updated=datetime.now(UTC))
    registry.put_trainer_status(record)


@dataclass
class Rig:
    """One namespace with an operator, and helpers to change and read objects there."""

    cluster: Cluster
    namespace: str
    s3: S3
    log: Path
    operator: subprocess.Popen[bytes] | None = field(default=None)
    _checked_bytes: int = 0
    """The beginning of the log that :meth:`check_log` has read."""

    def check_log(self) -> None:
        """Assert that the operator has logged something since the last call, and no error."""
        with self.log.open("rb") as log:
            log.seek(self._checked_bytes)
            whole, end, _ = log.read().rpartition(b"\n")  # the operator may be writing the last line
        self._checked_bytes += len(whole + end)
        lines = [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        assert lines, "the operator logs nothing"
        assert [line for line in lines if line["severity"] == "error"] == []

    def start(self) -> None:
        """Start the operator, which watches only this namespace and has no other rights than the chart gives."""
        metrics, health = free_ports(2)
        ports = {"AURORA_METRICS_PORT": str(metrics), "AURORA_HEALTH_PORT": str(health)}
        environment = {
            **self.cluster.environment,
            **ports,
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(self._operator_kubeconfig),
            "POD_NAMESPACE": self.namespace,
            "AURORA_LEASE_NAME": OPERATOR,
            "AURORA_WATCH_NAMESPACES": self.namespace,
            "AURORA_LEASE_SECONDS": "60",  # on a starved machine a call for the Lease takes seconds
            "AURORA_AGENT_IMAGE": IMAGE,
            "AURORA_RUNTIME_IMAGE": IMAGE,
        }
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "tests.rig.quick_operator"]
            self.operator = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY
            )

    @functools.cached_property
    def _operator_kubeconfig(self) -> Path:
        """Access as the chart's ServiceAccount, in the chart's mode for tenants."""
        mode = f"--set=watchNamespaces={{{self.namespace}}}"
        objects = render(mode, namespace=self.namespace, helm=self.cluster.helm)
        self.cluster.apply(*(obj for obj in objects if obj["kind"] in ("ServiceAccount", "Role", "RoleBinding")))
        path = self.log.with_name("operator.kubeconfig")
        self.cluster.write_account_kubeconfig(self.namespace, OPERATOR, path)
        return path

    @property
    def runs(self) -> bool:
        """Whether the operator was started and has not ended."""
        return self.operator is not None and self.operator.poll() is None

    def kill(self) -> None:
        """Kill the operator with SIGKILL, so it cannot finish anything. The next one need not wait for its Lease."""
        if self.operator is not None:
            self.operator.kill()
            self.operator.wait(10)
            self.operator = None
            with contextlib.suppress(NotFound):  # it was killed before it had a Lease
                self.api.call("DELETE", LEASE.path(self.namespace, OPERATOR))

    @functools.cached_property
    def api(self) -> SyncApi:
        """A direct client, for waits. Polling with kubectl would take a core from the cluster."""
        return SyncApi(new_client_from_config(str(self.cluster.kubeconfig)))

    def apply(self, name: str, body: dict[str, Any]) -> None:
        kind = {"apiVersion": API_VERSION, "kind": KIND}
        self.cluster.apply({**kind, "metadata": {"name": name, "namespace": self.namespace}, "spec": body})

    def patch(self, name: str, **parts: Any) -> None:
        """Change parts of the spec of the speculator ``name``."""
        body = json.dumps({"spec": parts})
        self.cluster.kubectl("patch", "auroraspeculator", name, "-n", self.namespace, "--type=merge", "-p", body)

    def offer(self, name: str, version: int, against: int) -> None:
        """Register a version with evidence that it is better than the version ``against``."""
        registry = self.registry(name)
        registry.put_evidence(evidence(version, VerdictKind.PASS, active=against))
        registry.register(registration(version))

    def get(self, *arguments: str) -> Any:
        """The parsed output of ``kubectl get`` with ``arguments`` in this namespace."""
        return self.cluster.get(*arguments, "-n", self.namespace)

    def list(self, resource: Resource, labels: str = "") -> Sequence[Object]:
        """The objects with these labels in this namespace."""
        return [*self.api.list(resource, self.namespace, labels)]

    def read(self, resource: Resource, name: str) -> Object:
        """One object in this namespace."""
        return self.api.get(resource, self.namespace, name)

    def events(self, name: str) -> Sequence[Object]:
        """The Events about the speculator ``name``."""
        about = {"kind": KIND, "name": name}
        return [event for event in self.list(EVENT) if about.items() <= event["involvedObject"].items()]

    def warnings(self, name: str) -> set[str]:
        """The reasons of the Warnings about the speculator ``name``."""
        return {event["reason"] for event in self.events(name) if event["type"] == "Warning"}

    @contextlib.contextmanager
    def speculator_with_a_draft(self, name: str, body: dict[str, Any]) -> Iterator[None]:
        """A speculator with an initial draft and a trainer that learns. It is deleted with the context."""
        self.apply(name, body)
        try:
            registry = self.registry(name)
            report_training(registry)
            registry.create_lineage(lineage())
            registry.register(registration(0))
            yield
        finally:
            self.cluster.kubectl("delete", "auroraspeculator", name, "-n", self.namespace, "--ignore-not-found")

    def status(self, name: str) -> SpeculatorStatus:
        return SpeculatorStatus.model_validate(self.read(SPECULATOR, name).get("status") or {})

    def wait(
        self, name: str, expected: str, holds: Callable[[SpeculatorStatus], bool], timeout: float = 180
    ) -> SpeculatorStatus:
        """Wait until the status ``holds``."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status(name)
            if holds(status):
                return status
            if time.monotonic() > deadline:
                shown = status.model_dump_json(by_alias=True, exclude_none=True, indent=1)
                raise TimeoutError(f"{expected}: not within {timeout} s\n{shown}\n{self.log.read_text()[-3000:]}")
            time.sleep(0.3)

    def registry(self, name: str) -> PodRegistry:
        """The speculator's registry in the store, as the trainer and the validator use it."""
        config = self.s3.config(bucket=BUCKET, root=root("aurora", None, self.namespace, name))
        objects = ObjectStore(StoreConfig(**vars(config)))
        objects.ensure_bucket()
        return PodRegistry(objects, SecretKeys(lambda: self.read(SECRET, f"{name}-keys")))


def condition(status: SpeculatorStatus, kind: str) -> Condition:
    """The condition of this type. Unknown until the status has one."""
    unknown = {"type": kind, "status": "Unknown", "reason": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return next((c for c in status.conditions if c.type == kind), Condition.model_validate(unknown))


def active(status: SpeculatorStatus) -> int | None:
    """The active version, or None."""
    return None if status.active is None else status.active.version


def install_crd(cluster: Cluster) -> None:
    """Install the resource definition, and wait until the API server serves it."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", FILE)
    cluster.kubectl("wait", "--for=condition=Established", "crd/auroraspeculators.aurora.dev", "--timeout=30s")


@contextlib.contextmanager
def namespace(cluster: Cluster, name: str, s3: S3) -> Iterator[None]:
    """A namespace with the store's Secret, whose inference pods admit this machine.

    It takes only pods that pass the ``restricted`` profile.
    """
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": name}}
    _delete_namespace(cluster, name)  # a killed run leaves speculators behind, whose store is gone
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    cluster.apply({**secret, "stringData": s3.environment()})
    if cluster.host_address:
        cluster.apply(policy_for_this_machine(cluster.host_address), namespace=name)  # the operator runs here
    try:
        yield
    finally:
        _delete_namespace(cluster, name)


def _delete_namespace(cluster: Cluster, name: str) -> None:
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
    # No pod can be created in the namespace any more. Without a shorter grace period, engines take a minute to end.
    cluster.kubectl("delete", "pods", "--all", "-n", name, "--grace-period=1", "--wait=false")
    cluster.kubectl("wait", "--for=delete", f"namespace/{name}", "--timeout=120s", timeout_seconds=130)
