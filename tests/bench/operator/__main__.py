"""How much does an operator with many speculators cost at rest, and how fast is it?

The operator is the real one, in a process of its own. API server, etcd, the controllers that make pods, and the S3
server are real. Stand-ins take the place of agents, of scheduler and kubelet, and of trainers: there are no nodes, no
containers and no engines. Every speculator is at rest: trained, without traffic, with nothing to do.

Each size gets a fresh API server and store. Measured in turn: requests, CPU and memory at rest; seconds from a change
of a spec to the Deployment, and from a pod's readiness to the status; seconds until everything is reconciled and
applied after kill -9.

Prints a Markdown table.

Takes about 12 minutes for each size up to 100, and 20 minutes for 1,000. Needs the build of
Kubernetes (python -m tests.cluster build), and no cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import tempfile
import time
from pathlib import Path

from tests.assets.cache import cache_root
from tests.assets.s3 import S3, seaweedfs
from tests.bench.bench_command import bench_parser, exit_on_sigterm
from tests.bench.markdown import markdown_table
from tests.bench.operator import measurements
from tests.bench.operator.api_client import ApiClient, ApiError
from tests.bench.operator.fleet import Fleet, speculators
from tests.bench.operator.measurements import AuditLog, Rig, Row, audit_policy
from tests.bench.operator.operator_process import OperatorProcess
from tests.bench.operator.seeds import Seeds
from tests.bench.operator.stand_ins import AgentStandIns, KubeletStandIn
from tests.bench.operator.store_proxy import StoreProxy
from tests.cluster.command import print_progress
from tests.cluster.file_lock import exclusive_lock
from tests.rig.api_server import ApiServer, api_server, free_ports

from aurora_api.crd import FILE

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
SETTLE_SECONDS, REST_SECONDS = 30.0, 180.0
"""Time between the last change and the window at rest, and the length of this window."""
SAMPLES, RESTARTS = 120, 3
"""Changes of each kind, and kills of the operator."""
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/auroraspeculators.aurora.dev"


def main() -> None:
    parser = bench_parser("tests.bench.operator", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 100, 1000], help="numbers of speculators")
    parser.add_argument("--replicas", type=int, default=10, help="inference pods of each speculator")
    arguments = parser.parse_args()
    exit_on_sigterm()
    _raise_file_limit()
    for count in arguments.sizes:
        print(table(run(count, arguments.replicas)), flush=True)


def _raise_file_limit() -> None:
    """Every agent's connection needs a file. The operator inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(count: int, replicas: int) -> Row:
    """Measure ``count`` speculators of ``replicas`` pods each.

    Raises when a part does not become ready, or the operator ends.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aurora-operator-bench-")))
        (directory / "audit.json").write_text(audit_policy(USER))
        audit = (f"--audit-policy-file={directory / 'audit.json'}", f"--audit-log-path={directory / 'audit.log'}")
        flags = (*audit, "--audit-log-maxsize=100000")  # megabytes: a log that is rotated would lose requests
        stack.enter_context(exclusive_lock(cache_root() / "operator-bench.lock"))  # one server has the agents' port
        print_progress(f"{count} speculators: starting API server and store")
        server = stack.enter_context(api_server(CONTROLLERS, flags=flags))
        s3 = stack.enter_context(seaweedfs())
        ports = free_ports(2)
        operator = OperatorProcess(_operator_access(server), directory / "operator.log", (ports[0], ports[1]))
        stack.callback(operator.kill)
        return asyncio.run(_measure(count, replicas, server, s3, operator, directory / "audit.log"))


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


async def _measure(count: int, replicas: int, server: ApiServer, s3: S3, operator: OperatorProcess, audit: Path) -> Row:
    """Set everything up around the operator, measure, and end every background task."""
    fleet, agents, store = Fleet(speculators(count), replicas), AgentStandIns(), StoreProxy(s3.endpoint)
    async with ApiClient(server) as api, asyncio.TaskGroup() as background:
        kubelet = KubeletStandIn(api, agents)
        rig = Rig(api, fleet, kubelet, operator, AuditLog(audit), store, agents)
        await agents.start()
        await store.start()
        await _install_resource(api)
        deployments = api.watch("/apis/apps/v1/deployments", fleet.deployments.handle)
        resources = api.watch("/apis/aurora.dev/v1alpha1/auroraspeculators", fleet.resources.handle)
        tasks = [*kubelet.start(background), *map(background.create_task, (deployments, resources))]
        seeds = Seeds(api, s3, fleet)
        await seeds.create(store.endpoint)
        tasks.append(background.create_task(seeds.trainer_stand_in()))
        row = await _sequence(rig, Progress(count))
        operator.kill()
        for task in tasks:
            task.cancel()
        await agents.stop()
        await store.stop()
    return {"speculators": count, **row}


async def _sequence(rig: Rig, progress: Progress) -> Row:
    """Every measurement in turn. The operator starts here for the first time."""
    row: Row = {}
    started = asyncio.get_running_loop().time()
    rig.operator.start()
    ready = await rig.fleet.until_ready(READY_TIMEOUT_SECONDS, progress.often)
    row["start_to_ready_seconds"] = round(ready - started, 1)
    row["pods"] = rig.kubelet.count
    progress.say(f"all are ready after {row['start_to_ready_seconds']} s; measuring at rest")
    await asyncio.sleep(SETTLE_SECONDS)
    row["at_rest"] = await measurements.at_rest(rig, REST_SECONDS)
    progress.say(f"at rest: {row['at_rest']}")
    row["change_to_applied_seconds"] = await measurements.change_to_applied(rig, SAMPLES)
    progress.say(f"change to applied: {row['change_to_applied_seconds']}")
    row["readiness_to_status_seconds"] = await measurements.readiness_to_status(rig, SAMPLES)
    progress.say(f"readiness to status: {row['readiness_to_status_seconds']}")
    row["restarts"] = []
    for _ in range(RESTARTS):
        row["restarts"].append(await measurements.restart(rig, progress.often))
        progress.say(f"restart: {row['restarts'][-1]}")
    return row


async def _install_resource(api: ApiClient) -> None:
    """Install the resource's definition, and wait until the API server serves it."""
    await api.apply_yaml(CRD_PATH, FILE.read_text())
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(ApiError):
                await api.call("GET", "/apis/aurora.dev/v1alpha1/auroraspeculators")
                return
            await asyncio.sleep(0.2)


def table(row: Row) -> str:
    """The headline figures."""
    head = (
        *("Speculators", "Pods", "API reads/min", "API writes/min", "Store calls/min", "Agent calls/min"),
        *(
            "CPU s/min",
            "RSS MiB",
            "Applied p50",
            "Applied p99",
            "Status p50",
            "Status p99",
            "Reconciled s",
            "Outage applied s",
            "Restart CPU s",
            "From nothing s",
        ),
    )
    return markdown_table(head, [_cells(row)])


def _cells(row: Row) -> tuple[object, ...]:
    rest, applied = row["at_rest"], row["change_to_applied_seconds"]
    status = row["readiness_to_status_seconds"]["ready"]
    return (
        *(row["speculators"], row["pods"], rest["api_reads_per_minute"], rest["api_writes_per_minute"]),
        *(rest["store_calls_per_minute"], rest["agent_calls_per_minute"], rest["cpu_seconds_per_minute"]),
        *(rest["memory_mebibytes"]["now"], applied["p50"], applied["p99"], status["p50"], status["p99"]),
        *(_longest(row, "reconciled_seconds"), _longest(row, "applied_seconds"), _longest(row, "cpu_seconds")),
        row["start_to_ready_seconds"],
    )


def _longest(row: Row, figure: str) -> object:
    """The highest ``figure`` of all restarts after kill -9; empty without one.

    A user waits for ``applied_seconds``, until every spec that changed while no leader ran is applied.
    """
    return max((each[figure] for each in row["restarts"]), default="")


if __name__ == "__main__":
    main()
