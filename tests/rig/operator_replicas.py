"""Operator processes beside a real API server: replicas that compete for a Lease, and faults that hit one of them.

Each replica has a ServiceAccount and a proxy of its own, so that its network can be cut. There are no pods: the
speculator's store has no credentials, and the operator only keeps the children and the status.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes import client
from kubernetes import config as kube_config

from aurora_api import GROUP, PLURAL, VERSION
from aurora_api.crd import FILE, REPOSITORY
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import DEPLOYMENT, SPECULATOR, Object
from tests.rig.api_server import ApiServer, free_ports
from tests.rig.network_cut import TcpProxy, tcp_proxy
from tests.rig.sync_api import SyncApi

NAMESPACE, SYSTEM_NAMESPACE, NAME = "team", "aurora-system", "chat"
SPEC = {
    "target": {"model": "org/model"},
    "store": {"bucket": "bucket", "credentials": {"secretRef": {"name": "absent"}}},
    "serving": {"replicas": 1},
}
_POLL_SECONDS = 0.05
_STOP_TIMEOUT_SECONDS = 30.0


@dataclass
class OperatorReplica:
    """One operator process."""

    name: str
    kubeconfig: Path
    log: Path
    proxy: TcpProxy
    settings: Mapping[str, str]
    module: str = "aurora_operator"
    """The module that Python runs."""
    _process: subprocess.Popen[bytes] | None = field(default=None)
    metrics_port: int = 0
    """The port of its metrics. 0 before the first start."""

    def start(self) -> None:
        self.metrics_port, health_port = free_ports(2)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "KUBECONFIG": str(self.kubeconfig),
            "AURORA_METRICS_PORT": str(self.metrics_port),
            "AURORA_HEALTH_PORT": str(health_port),
            "AURORA_RUNTIME_IMAGE": "aurora.test/runtime:1",
            "AURORA_AGENT_IMAGE": "aurora.test/agent:1",
            "AURORA_WATCH_NAMESPACES": NAMESPACE,
            "POD_NAMESPACE": SYSTEM_NAMESPACE,
            "POD_NAME": self.name,
            **self.settings,
        }
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", self.module]
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY
            )

    @property
    def runs(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal. SIGSTOP freezes the process, SIGCONT lets it go on."""
        assert self._process is not None, "the replica was started"
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the process. SIGTERM lets the process release its Lease."""
        if self._process is not None:
            self.send(number)
            self._process.wait(_STOP_TIMEOUT_SECONDS)
            self._process = None

    def leads(self) -> bool:
        """What the replica's own metric says. False while the replica does not answer."""
        return self._figure("aurora_operator_leading") == 1

    def yielded(self) -> float:
        """How many speculators the replica leaves to another installation. 0 while the replica does not answer."""
        return self._figure("aurora_operator_yielded_speculators")

    def _figure(self, metric: str) -> float:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=2) as response:
                found = re.search(rf"^{metric} (\S+)$", response.read().decode(), re.MULTILINE)
        except OSError:
            return 0.0
        return float(found[1]) if found is not None else 0.0

    def starts(self) -> int:
        """How often a process of this replica has come to wait as a standby."""
        return sum("this replica is a standby" in line for line in self.log_lines("info"))

    def start_as_standby(self, timeout_seconds: float) -> None:
        """Start beside a leader, and wait until the process is ready to take over."""
        before = self.starts() if self.log.exists() else 0
        self.start()
        seconds_until(lambda: self.starts() > before, timeout_seconds, f"{self.name} waits as a standby")

    def log_lines(self, level: str) -> list[str]:
        """The messages of one level in the log."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["message"] for line in lines if line["severity"] == level]


@dataclass
class OperatorRig:
    """An API server with a speculator, and operators that act on it."""

    server: ApiServer
    folder: Path

    def __post_init__(self) -> None:
        access = kube_config.new_client_from_config(str(self.server.kubeconfig))
        self.api = SyncApi(access)
        self._objects = client.CustomObjectsApi(access)

    def prepare(self) -> None:
        """Install the CRD, and create the namespaces."""
        self.server.kubectl("apply", "--server-side", "-f", FILE)
        self.server.kubectl("wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=30s")
        for namespace in (NAMESPACE, SYSTEM_NAMESPACE):
            self.server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})

    def create_speculator(self) -> None:
        kind = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "AuroraSpeculator"}
        self.server.apply({**kind, "metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": SPEC})

    @contextlib.contextmanager
    def replica(self, name: str, module: str = "aurora_operator", **settings: str) -> Iterator[OperatorReplica]:
        """A replica that is not started yet, with a ServiceAccount and a network of its own. It ends with the context.

        Args:
            module: what Python runs.
            settings: more environment variables.
        """
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        self.server.apply({**account, "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE}})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": SYSTEM_NAMESPACE}
        kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
        self.server.apply({**kind, "metadata": {"name": name}, "roleRef": role, "subjects": [subject]})
        direct = self.server.kubeconfig_of(SYSTEM_NAMESPACE, name)
        port = int(self.server.url.rpartition(":")[2])
        with tcp_proxy(port) as proxy:
            kubeconfig = self.folder / f"{name}.kubeconfig"
            kubeconfig.write_text(direct.read_text().replace(self.server.url, f"https://127.0.0.1:{proxy.port}"))
            replica = OperatorReplica(name, kubeconfig, self.folder / f"{name}.log", proxy, settings, module)
            try:
                yield replica
            finally:
                replica.end()

    def scale(self, replicas: int) -> None:
        """Change the speculator's spec, for the operator to pass on to the Deployment."""
        patch = {"spec": {"serving": {"replicas": replicas}}}
        self._objects.patch_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, NAME, patch)

    def deployment(self) -> Object | None:
        try:
            return self.api.get(DEPLOYMENT, NAMESPACE, NAME)
        except NotFound:
            return None

    def scaled_to(self, replicas: int) -> bool:
        found = self.deployment()
        return found is not None and found["spec"]["replicas"] == replicas

    def status(self) -> SpeculatorStatus:
        stored = self.api.get(SPECULATOR, NAMESPACE, NAME)
        return SpeculatorStatus.model_validate(stored.get("status") or {})

    def events(self, reason: str) -> list[str]:
        """The messages of the Events with this reason."""
        listed = self.server.get("events", "-n", NAMESPACE)["items"]
        return [event["message"] for event in listed if event["reason"] == reason]


def seconds_until(holds: Callable[[], bool], timeout_seconds: float, what: str) -> float:
    """How long it took until ``holds``. Raises TimeoutError with ``what`` when it took too long."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > timeout_seconds:
            raise TimeoutError(f"{what}: not within {timeout_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return time.monotonic() - started
