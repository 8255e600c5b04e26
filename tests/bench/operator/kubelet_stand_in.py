"""A stand-in for scheduler and kubelet: it makes every pod of the operator's workloads run and become ready.

There are no nodes and no containers. A pod is an object on the API server, with an address at which the stand-in agent
answers. The Deployments are real: kube-controller-manager makes their pods.
"""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime

from tests.bench.operator.agent_stand_in import AgentStandIns, address
from tests.bench.operator.api_client import STRATEGIC_PATCH, ApiClient, ApiError, Object
from tests.bench.operator.fleet import Speculator

WORKERS = 8
LABELS = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Daurora-operator"
INFERENCE = "inference"


class KubeletStandIn:
    """Runs pods until its tasks are cancelled."""

    def __init__(self, api: ApiClient, agents: AgentStandIns) -> None:
        self._api, self._agents = api, agents
        self._queue: asyncio.Queue[tuple[str, str, list[str]]] = asyncio.Queue()
        self._seen: set[str] = set()
        self._numbers = itertools.count()
        self.pods: dict[Speculator, set[str]] = {}
        """The names of the inference pods of each speculator."""

    @property
    def count(self) -> int:
        """Pods that were started."""
        return len(self._seen)

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        workers = [group.create_task(self._work()) for _ in range(WORKERS)]
        return [group.create_task(self._api.watch("/api/v1/pods", self._handle, LABELS)), *workers]

    def _handle(self, kind: str, pod: Object) -> None:
        metadata = pod["metadata"]
        labels = metadata.get("labels") or {}
        key = Speculator(metadata["namespace"], labels.get("app.kubernetes.io/instance", ""))
        inference = labels.get("app.kubernetes.io/component") == INFERENCE
        if kind == "DELETED":
            self.pods.get(key, set()).discard(metadata["name"])
        elif metadata["uid"] not in self._seen:
            self._seen.add(metadata["uid"])
            containers = [container["name"] for container in pod["spec"]["containers"]]
            self._queue.put_nowait((metadata["namespace"], metadata["name"], containers))
            if inference:
                self.pods.setdefault(key, set()).add(metadata["name"])

    async def _work(self) -> None:
        while True:
            namespace, name, containers = await self._queue.get()
            pod_address = address(next(self._numbers))
            self._agents.add(pod_address, name)
            try:
                await self._patch(namespace, name, running_status(pod_address, containers))
            except ApiError as error:
                if error.status != 404:
                    raise

    async def set_ready(self, namespace: str, name: str, ready: bool) -> None:
        """Change the pod's condition Ready, as a readiness probe does."""
        status = {"conditions": [condition(kind, ready) for kind in ("ContainersReady", "Ready")]}
        await self._patch(namespace, name, status)

    async def _patch(self, namespace: str, name: str, status: Object) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        await self._api.call("PATCH", path, {"status": status}, STRATEGIC_PATCH)


def condition(kind: str, true: bool) -> Object:
    """A pod's condition."""
    return {"type": kind, "status": str(true), "lastTransitionTime": _now()}


def running_status(pod_address: str, containers: list[str]) -> Object:
    """The status of a pod whose containers run and pass their probes."""
    running = {"running": {"startedAt": _now()}}
    return {
        "phase": "Running",
        "podIP": pod_address,
        "podIPs": [{"ip": pod_address}],
        "startTime": _now(),
        "conditions": [condition(kind, True) for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")],
        "containerStatuses": [
            {
                "name": name,
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": running,
                "image": "",
                "imageID": "",
            }
            for name in containers
        ],
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
