"""A real KEDA beside a cluster: its operator and its API server of external metrics, as processes of this machine.

Programs, resource types, roles and the Service come from KEDA's own Go module. Both processes have the token of KEDA's
ServiceAccount, so KEDA has no other rights than its roles give. Three things differ from an installation: the Service
has no selector and leads to this machine, the certificates are made here, and KEDA's admission webhooks do not run.

Invariant: when the context ends, the processes are gone, and so is everything that they need in the cluster. An API
whose server is gone would keep Kubernetes from deleting namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.cluster.cluster import Cluster
from tests.cluster.command import NotReadyError, run_or_none, stop_process, url_answers, wait_until
from tests.cluster.local.pki import create_authority, create_certificate
from tests.rig.api_server import free_ports
from tests.rig.go_tools import built_tool
from tests.rig.third_party_crds import KEDA

MODULE: Final = Path(__file__).parent
NAMESPACE, ACCOUNT, SERVICE = "keda", "keda-operator", "keda-metrics-apiserver"
"""The names in KEDA's manifests."""
EXTERNAL_METRICS: Final = "/apis/external.metrics.k8s.io/v1beta1"
_CRDS: Final = tuple(
    f"config/crd/bases/{name}.yaml"
    for name in (
        "eventing.keda.sh_cloudeventsources",
        "eventing.keda.sh_clustercloudeventsources",
        "keda.sh_clustertriggerauthentications",
        "keda.sh_scaledjobs",
        "keda.sh_scaledobjects",
        "keda.sh_triggerauthentications",
    )
)
_ACCESS: Final = (
    "config/service_account/service_account.yaml",
    "config/rbac/role.yaml",
    "config/rbac/role_binding.yaml",
    "config/metrics-server/role.yaml",
    "config/metrics-server/role_binding.yaml",
)
START_TIMEOUT_SECONDS: Final = 120.0
STOP_TIMEOUT_SECONDS: Final = 30.0

Object = dict[str, Any]


@contextlib.contextmanager
def running_keda(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Run KEDA until the context ends. It watches all namespaces. Each ScaledObject that is left is deleted then.

    Args:
        folder: A folder of its own, for certificates, kubeconfigs and logs.

    Raises:
        NotReadyError: KEDA was not ready within two minutes. The message has its log.
    """
    programs = {name: built_tool(MODULE, name) for name in ("operator", "adapter")}
    certificates = folder / "certificates"
    certificates.mkdir()
    create_authority(certificates, "ca")
    names = [f"DNS:{SERVICE}.{NAMESPACE}.svc", "IP:127.0.0.1"]
    create_certificate(certificates, "ca", "tls", "/CN=keda", names)
    health, grpc, metrics, external = free_ports(4)
    kubeconfig = folder / "kubeconfig"
    with contextlib.ExitStack() as stack:
        home = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        for objects in ([home], KEDA.objects(*_CRDS), KEDA.objects(*_ACCESS)):
            stack.enter_context(_applied(cluster, list(objects)))
        cluster.kubectl("wait", "--for=condition=Established", "crd/scaledobjects.keda.sh", "--timeout=60s")
        cluster.write_account_kubeconfig(NAMESPACE, ACCOUNT, kubeconfig)
        operator = [
            *("--zap-encoder=console", "--zap-log-level=info", "--enable-prometheus-metrics=false"),
            *(f"--health-probe-bind-address=127.0.0.1:{health}", f"--metrics-service-bind-address=127.0.0.1:{grpc}"),
            f"--cert-dir={certificates}",
        ]
        ready = partial(url_answers, f"http://127.0.0.1:{health}/readyz")
        stack.enter_context(_process(folder, [programs["operator"], *operator], kubeconfig, ready))
        stack.enter_context(_applied(cluster, _served_here(cluster.host_address, external, certificates / "ca.crt")))
        adapter = [
            *(f"--bind-address={cluster.host_address}", f"--secure-port={external}", f"--port={metrics}"),
            *(f"--{use}-kubeconfig={kubeconfig}" for use in ("lister", "authentication", "authorization")),
            *(f"--client-ca-file={certificates / 'ca.crt'}", f"--cert-dir={certificates}"),
            f"--tls-cert-file={certificates / 'tls.crt'}",
            f"--tls-private-key-file={certificates / 'tls.key'}",
            f"--metrics-service-address=127.0.0.1:{grpc}",
        ]
        stack.enter_context(_process(folder, [programs["adapter"], *adapter], kubeconfig, partial(_answers, cluster)))
        stack.callback(_delete_scaled_objects, cluster)  # KEDA removes its finalizers while it runs
        yield


def _served_here(address: str, port: int, authority: Path) -> list[Object]:
    """KEDA's Service and APIService, which lead to a port of this machine."""
    (service,) = [
        obj for obj in KEDA.objects("config/metrics-server/service.yaml") if obj["metadata"]["name"] == SERVICE
    ]
    (api,) = KEDA.objects("config/metrics-server/api_service.yaml")
    del service["spec"]["selector"]
    api["spec"]["caBundle"] = b64encode(authority.read_bytes()).decode()
    labels = {"kubernetes.io/service-name": SERVICE}
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{SERVICE}-here", "namespace": NAMESPACE, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }
    return [service, endpoints, api]


@contextlib.contextmanager
def _applied(cluster: Cluster, objects: Sequence[Object]) -> Iterator[None]:
    """Objects that are in the cluster until the context ends."""
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    try:
        cluster.apply(*objects)
        yield
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "--timeout=60s", "-f", "-", input=manifest)


@contextlib.contextmanager
def _process(
    folder: Path, command: Sequence[str | Path], kubeconfig: Path, ready: Callable[[], bool]
) -> Iterator[None]:
    """One of KEDA's programs until the context ends."""
    name = Path(command[0]).name.partition("-")[0]
    log = folder / f"{name}.log"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GOMAXPROCS": "2",
        "KUBECONFIG": str(kubeconfig),
        "POD_NAMESPACE": NAMESPACE,
        "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,
        "WATCH_NAMESPACE": "",  # all
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT)

    def ready_or_raise() -> bool:
        if process.poll() is not None:
            raise NotReadyError(f"KEDA's {name} ended: {log.read_text()[-3000:]}")
        return ready()

    try:
        wait_until(f"KEDA's {name}", ready_or_raise, START_TIMEOUT_SECONDS, lambda: f": {log.read_text()[-3000:]}")
        yield
    finally:
        stop_process(process, STOP_TIMEOUT_SECONDS)


def _answers(cluster: Cluster) -> bool:
    """Whether the API server of the cluster reaches KEDA's."""
    tools = cluster.access.tools
    context = ["--context", tools.context] if tools.context else []
    get = ("get", "--raw", EXTERNAL_METRICS)
    return run_or_none(tools.kubectl, *context, "--request-timeout=5s", *get, env=tools.environment) is not None


def _delete_scaled_objects(cluster: Cluster) -> None:
    cluster.kubectl("delete", "scaledobjects.keda.sh", "--all", "--all-namespaces", "--timeout=60s")
