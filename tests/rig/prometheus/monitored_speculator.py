"""A speculator whose operator and agent are real processes, for Prometheus to find through a real API server.

There is no kubelet. The pods are objects of the API server, made from the chart's and the operator's own templates, and
the processes run on the loopback. So only the numbers of the ports differ from a cluster, and never their names.
Engine, engine plugins and trainer are stand-ins: :mod:`tests.rig.prometheus.engine_stand_in`, and records as the
plugins and the trainer write them, which grow as if there were traffic.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aurora_protocol.agent_api import LiveCounters, SwapRequest
from aurora_protocol.draft_records import Registration
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, ServingSettings
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.pod_files import (
    CaptureState,
    EngineState,
    SourceCounters,
    SpeculationState,
    write_atomically,
)
from aurora_store import ObjectStore
from tests.assets.pod_processes import PodProcesses
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import SecretKeys
from tests.cluster.command import url_answers, wait_until
from tests.rig.api_server import ApiServer, api_server
from tests.rig.chart.rendered_chart import Object, select
from tests.rig.operator_replicas import NAME, NAMESPACE, SPEC, SYSTEM_NAMESPACE, OperatorReplica, OperatorRig
from tests.unit.fakes import draft_tensors, lineage, publish_bytes, safetensors

OPERATOR_POD, INFERENCE_POD = "operator-0", "chat-0"
BUCKET: Final = "monitored"
START_SECONDS: Final = 180.0
TICK_SECONDS: Final = 0.5
BOOT: Final = "00000000boot"
ONE_GPU: Final = {"limits": {"nvidia.com/gpu": "1"}}
"""The resources of each engine and of the trainer. The operator counts GPUs only. Nothing is scheduled here."""


@dataclass(frozen=True)
class MonitoredSpeculator:
    """What runs."""

    server: ApiServer
    pod: PodProcesses
    versions: tuple[Registration, ...]
    """Drafts in the store. The pod serves the first."""

    def swap(self, version: int, epoch: int) -> None:
        """Let the agent load a version, and wait until it has."""
        digest = self.versions[version].digest
        assert self.pod.request_swap(SwapRequest(version=version, digest=digest, epoch=epoch)) == 202
        assert self.pod.wait_until_swap_ends().version == version


@contextlib.contextmanager
def monitored_speculator(folder: Path, chart: list[Object]) -> Iterator[MonitoredSpeculator]:
    """Run everything until the context ends.

    Args:
        folder: A folder of its own.
        chart: The rendered objects of the chart.
    """
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(seaweedfs())
        server = stack.enter_context(api_server())
        rig = OperatorRig(server, folder)
        rig.prepare()
        _create_speculator(server, store)
        operator = stack.enter_context(rig.replica(OPERATOR_POD))
        operator.start()
        wait_until("the speculator's Deployment", lambda: rig.deployment() is not None, START_SECONDS)
        deployment = rig.deployment()
        assert deployment is not None
        pod, versions = _pod(folder, server, store, deployment)
        stack.enter_context(_running(pod))
        _create_pods(server, select(chart, "Deployment"), operator, deployment, pod)
        yield MonitoredSpeculator(server, pod, versions)


def _create_speculator(server: ApiServer, store: S3) -> None:
    metadata = {"name": "s3", "namespace": NAMESPACE}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": store.environment()}
    location = {"bucket": BUCKET, "endpoint": store.endpoint, "credentials": {"secretRef": {"name": "s3"}}}
    kind = {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator"}
    metadata = {"name": NAME, "namespace": NAMESPACE}
    serving = {"replicas": 1, "device": "cpu", "template": _template("sglang")}
    spec = {**SPEC, "store": location, "serving": serving, "training": {"template": _template("trainer")}}
    server.apply(secret, {**kind, "metadata": metadata, "spec": spec})


def _template(container: str) -> Object:
    return {"spec": {"containers": [{"name": container, "resources": ONE_GPU}]}}


def _pod(
    folder: Path, server: ApiServer, store: S3, deployment: Object
) -> tuple[PodProcesses, tuple[Registration, ...]]:
    """The inference pod with the operator's own settings and keys, and two drafts in its store.

    The operator makes the first draft active.
    """
    containers = deployment["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value", "") for container in containers for entry in container["env"]}
    settings = ServingSettings.from_json(variables[SETTINGS_VARIABLE])
    keys = SecretKeys(lambda: server.get("secret", f"{NAME}-keys", "-n", NAMESPACE))
    objects = ObjectStore(store.config(bucket=BUCKET, root=settings.store.root))
    objects.ensure_bucket()
    registry = PodRegistry(objects, keys)
    registry.create_lineage(lineage())
    drafts = [safetensors(draft_tensors(fill)) for fill in (1.0, 2.0)]
    versions = tuple(publish_bytes(registry, folder, version, data) for version, data in enumerate(drafts))
    registry.put_trainer_status(_trainer_status())
    pod = PodProcesses(folder / "pod", settings, store.environment())
    for name in keys:
        (pod.signing / name.value).write_bytes(keys[name])
    staged = pod.stage()
    assert staged.returncode == 0, staged.stderr.decode()
    return pod, versions


def _trainer_status() -> TrainerStatus:
    return TrainerStatus(
        lineage=1,
        phase=TrainerPhase.TRAINING,
        step=100,
        shards=10,
        trained_tokens=10_000,
        held_out_acceptance_length=2.5,
        pending_shards=2,
        updated=datetime.now(UTC),
    )


@contextlib.contextmanager
def _running(pod: PodProcesses) -> Iterator[None]:
    """The pod's processes, and its plugins' records, which grow."""
    pod.folder.spool.mkdir()
    key = pod.engine_keys / "admin-key"
    command = [sys.executable, "-m", "tests.rig.prometheus.engine_stand_in", "--port", str(pod.engine_port)]
    with pod.log.open("ab") as log:
        engine = subprocess.Popen([*command, "--key", str(key)], stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until("the engine's stand-in", lambda: url_answers(f"{pod.engine_url}/ready"), 60, pod.log.read_text)
        state = EngineState(boot=BOOT, ready=True, started_at=datetime.now(UTC))
        write_atomically(pod.folder.engine, state.to_json())
        with _growing_records(pod), pod.agent():
            yield
    finally:
        engine.kill()
        engine.wait(60)


@contextlib.contextmanager
def _growing_records(pod: PodProcesses) -> Iterator[None]:
    """Write the records of the capture plugin and of the speculation controller every half second."""
    stopped = threading.Event()
    _write_records(pod, 1)

    def write() -> None:
        ticks = 1
        while not stopped.wait(TICK_SECONDS):
            ticks += 1
            _write_records(pod, ticks)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _write_records(pod: PodProcesses, ticks: int) -> None:
    capture = CaptureState(
        boot=BOOT,
        ok=True,
        captured_records=100 * ticks,
        dropped_records=ticks,
        losses={"queue": ticks},
        live=LiveCounters(
            requests=ticks,
            tokens=60 * ticks,
            rounds=30 * ticks,
            tokens_squared=3600 * ticks,
            tokens_by_rounds=1800 * ticks,
            rounds_squared=900 * ticks,
        ),
    )
    speculation = SpeculationState(
        boot=BOOT,
        rounds_by_arm={"off": 5 * ticks, "draft-3": 50 * ticks, "lookup-5": 10 * ticks},
        draft=_counters(50 * ticks),
        lookup=_counters(10 * ticks),
        speedup_over_off=1.4,
    )
    write_atomically(pod.folder.capture, capture.to_json())
    write_atomically(pod.folder.speculation, speculation.to_json())


def _counters(rounds: int) -> SourceCounters:
    """Each position was proposed in every round, and accepted in half of the rounds of the position before."""
    return SourceCounters(proposed_at=(rounds,) * 3, accepted_at=(rounds // 2, rounds // 4, rounds // 8))


def _create_pods(
    server: ApiServer, chart_deployment: Object, operator: OperatorReplica, deployment: Object, pod: PodProcesses
) -> None:
    """The two pods, ready, at the loopback address."""
    accounts = {"apiVersion": "v1", "kind": "ServiceAccount"}
    operator_template, template = (one["spec"]["template"] for one in (chart_deployment, deployment))
    for namespace, name, one, ports in (
        (SYSTEM_NAMESPACE, OPERATOR_POD, operator_template, {"metrics": operator.metrics_port}),
        (NAMESPACE, INFERENCE_POD, template, {"agent": pod.agent_port, "http": pod.engine_port}),
    ):
        account = one["spec"].get("serviceAccountName", "default")
        server.apply({**accounts, "metadata": {"name": account, "namespace": namespace}})
        labels = one["metadata"]["labels"] | {"pod-template-hash": "1"}
        replica_set = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{name[:-2]}-1", "uid": "1"}
        owners = [replica_set | {"controller": True}]  # no controller runs here, so it need not exist
        metadata = {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": owners}
        spec = {**one["spec"], "containers": [_with_ports(c, ports) for c in one["spec"]["containers"]]}
        server.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        ready = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready")]
        status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}], "conditions": ready}
        patch = json.dumps({"status": status})
        server.kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def _with_ports(container: Object, ports: Mapping[str, int]) -> dict[str, Any]:
    """``container`` with other numbers for its ports. A port that ``ports`` does not name is left out."""
    kept = [
        port | {"containerPort": ports[port["name"]]} for port in container.get("ports", ()) if port["name"] in ports
    ]
    return {**container, "ports": kept}
