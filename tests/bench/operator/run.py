"""One run: a fresh API server and store, a number of speculators at rest, and every measurement in turn."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.assets.cache import cache_root
from tests.assets.s3 import S3, seaweedfs
from tests.bench.operator import measurements
from tests.bench.operator.agent_stand_in import AgentStandIns
from tests.bench.operator.api_client import ApiClient, ApiError
from tests.bench.operator.audit_log import AuditLog, policy
from tests.bench.operator.fleet import Fleet, speculators
from tests.bench.operator.kubelet_stand_in import KubeletStandIn
from tests.bench.operator.measurements import Rig, Row
from tests.bench.operator.operator_process import OperatorProcess
from tests.bench.operator.seeds import Seeds
from tests.bench.operator.store_proxy import StoreProxy
from tests.cluster.command import print_progress
from tests.cluster.file_lock import exclusive_lock
from tests.rig.api_server import ApiServer, api_server, free_ports

CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "disruption-controller",
    "serviceaccount-controller",
)
"""The controllers that make pods, and those that admission and disruption budgets need. There is no node."""
ACCOUNT_NAMESPACE, ACCOUNT = "default", "aurora-operator"
USER = f"system:serviceaccount:{ACCOUNT_NAMESPACE}:{ACCOUNT}"
READY_TIMEOUT_SECONDS = 1800.0
PROGRESS_SECONDS = 10.0
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/auroraspeculators.aurora.dev"


@dataclass(frozen=True)
class RunOptions:
    """What to run, and for how long."""

    replicas: int = 10
    rest_seconds: float = 180.0
    settle_seconds: float = 30.0
    """Time between the last change and the window at rest."""
    samples: int = 120
    restarts: int = 3
    checkout: Path = Path(__file__).resolve().parents[3]
    """The checkout whose operator runs, with its resource definition."""
    keep_log: Path | None = None
    """A file to which the operator's log is appended."""


def run(count: int, options: RunOptions) -> Row:
    """Measure ``count`` speculators. Raises when a part does not become ready, or the operator ends."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aurora-operator-bench-")))
        (directory / "audit.json").write_text(policy(USER))
        audit = (f"--audit-policy-file={directory / 'audit.json'}", f"--audit-log-path={directory / 'audit.log'}")
        flags = (*audit, "--audit-log-maxsize=100000")  # megabytes: a log that is rotated would lose requests
        stack.enter_context(exclusive_lock(cache_root() / "operator-bench.lock"))  # one server has the agents' port
        print_progress(f"{count} speculators: starting API server and store")
        server = stack.enter_context(api_server(CONTROLLERS, flags=flags))
        s3 = stack.enter_context(seaweedfs())
        log = options.keep_log or directory / "operator.log"
        ports = free_ports(2)
        operator = OperatorProcess(options.checkout, _operator_access(server), log, (ports[0], ports[1]))
        stack.callback(operator.kill)
        return asyncio.run(_measure(count, options, server, s3, operator, directory / "audit.log"))


def _operator_access(server: ApiServer) -> Path:
    """A kubeconfig of the operator's own user, which the audit log tells from the bench."""
    metadata = {"name": ACCOUNT, "namespace": ACCOUNT_NAMESPACE}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", **metadata}],
    }
    server.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}, binding)
    return server.kubeconfig_of(ACCOUNT_NAMESPACE, ACCOUNT)


class Progress:
    """Prints what the run does, and repeats a line at most every ten seconds."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._printed_seconds = 0.0

    def say(self, message: str) -> None:
        self._printed_seconds = time.monotonic()
        print_progress(f"{self._count} speculators: {message}")

    def often(self, message: str) -> None:
        if time.monotonic() - self._printed_seconds >= PROGRESS_SECONDS:
            self.say(message)


async def _measure(
    count: int, options: RunOptions, server: ApiServer, s3: S3, operator: OperatorProcess, audit: Path
) -> Row:
    """Set everything up around the operator, measure, and end every background task."""
    fleet, agents, store = Fleet(speculators(count), options.replicas), AgentStandIns(), StoreProxy(s3.endpoint)
    async with ApiClient(server) as api, asyncio.TaskGroup() as background:
        kubelet = KubeletStandIn(api, agents)
        rig = Rig(api, fleet, kubelet, operator, AuditLog(audit), store, agents)
        await agents.start()
        await store.start()
        await _install_resource(api, options.checkout)
        deployments = api.watch("/apis/apps/v1/deployments", fleet.deployments.handle)
        resources = api.watch("/apis/aurora.dev/v1alpha1/auroraspeculators", fleet.resources.handle)
        tasks = [*kubelet.start(background), *map(background.create_task, (deployments, resources))]
        seeds = Seeds(api, s3, fleet)
        await seeds.create(store.endpoint)
        tasks.append(background.create_task(seeds.trainer_stand_in()))
        row = await _sequence(rig, options, Progress(count))
        operator.kill()
        for task in tasks:
            task.cancel()
        await agents.stop()
        await store.stop()
    return {"speculators": count, "replicas_each": options.replicas, **row}


async def _sequence(rig: Rig, options: RunOptions, progress: Progress) -> Row:
    """Every measurement in turn. The operator starts here for the first time."""
    row: Row = {}
    started = asyncio.get_running_loop().time()
    rig.operator.start()
    ready = await rig.fleet.until_ready(READY_TIMEOUT_SECONDS, progress.often)
    row["start_to_ready_seconds"] = round(ready - started, 1)
    row["pods"] = rig.kubelet.count
    progress.say(f"all are ready after {row['start_to_ready_seconds']} s; measuring at rest")
    await asyncio.sleep(options.settle_seconds)
    row["at_rest"] = await measurements.at_rest(rig, options.rest_seconds)
    progress.say(f"at rest: {row['at_rest']}")
    row["change_to_applied_seconds"] = await measurements.change_to_applied(rig, options.samples)
    progress.say(f"change to applied: {row['change_to_applied_seconds']}")
    row["readiness_to_status_seconds"] = await measurements.readiness_to_status(rig, options.samples)
    progress.say(f"readiness to status: {row['readiness_to_status_seconds']}")
    row["restarts"] = []
    for _ in range(options.restarts):
        row["restarts"].append(await measurements.restart(rig, progress.often))
        progress.say(f"restart: {row['restarts'][-1]}")
    return row


async def _install_resource(api: ApiClient, checkout: Path) -> None:
    """Install the resource's definition, and wait until the API server serves it."""
    await api.apply_yaml(CRD_PATH, (checkout / "crds/auroraspeculators.yaml").read_text())
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(ApiError):
                await api.call("GET", "/apis/aurora.dev/v1alpha1/auroraspeculators")
                return
            await asyncio.sleep(0.2)
