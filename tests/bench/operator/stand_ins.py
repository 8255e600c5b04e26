"""Stand-ins for the agents of all pods, and for scheduler and kubelet. There are no nodes and no containers.

The agents are one HTTP server with one loopback address for each pod. Linux answers on every address of 127.0.0.0/8, so
a server on all addresses sees in each connection which pod was called. It answers ``GET /v1/state`` and ``PUT
/v1/draft`` as an agent at rest does. A swap succeeds at once. One pod in ten has traffic. Connections from outside the
loopback are closed unanswered.

The kubelet makes every pod of the operator's workloads run and become ready. A pod is an object on the API server, with
the address of its agent. The Deployments are real: kube-controller-manager makes their pods.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime

from tests.bench.operator.api_client import STRATEGIC_PATCH, ApiClient, ApiError, Object
from tests.bench.operator.fleet import Speculator
from tests.bench.operator.seeds import ACTIVE, EPOCH

from aurora_protocol.agent_api import AGENT_PORT, AgentState, LiveCounters, SwapRequest, SwapStatus

WORKERS = 8
LABELS = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Daurora-operator"
INFERENCE = "inference"
FIRST_NETWORK = 64
"""Pods have the addresses from 127.64.0.1 on. Lower networks are left to other programs."""


def address(index: int) -> str:
    """The address of the pod with number ``index``, from 0."""
    number = index + 1
    return f"127.{FIRST_NETWORK + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


@dataclass
class _Agent:
    """The state of one pod, which begins with the active version, as its init container stages it."""

    pod: str
    version: int = ACTIVE
    epoch: int = EPOCH
    answer: bytes = b""
    has_traffic: bool = False
    """Its counters grow from one call to the next."""
    rounds: int = 1000

    def __post_init__(self) -> None:
        self.render()

    def render(self) -> None:
        """Keep the answer as bytes. A call then costs the bench little."""
        state = AgentState(
            pod=self.pod,
            boot="stand-in",
            engine_ready=True,
            version=self.version,
            checksum=f"sum-{self.version}",
            swap=SwapStatus(version=self.version),
            live=LiveCounters(requests=self.rounds // 10, tokens=2 * self.rounds, rounds=self.rounds),
        )
        self.answer = state.to_json()


PODS_PER_BUSY_ONE = 10
"""One pod in so many has traffic, so figures in the status of its speculator move."""


class AgentStandIns:
    """The server. Pods are registered before they are called."""

    def __init__(self) -> None:
        self._agents: dict[str, _Agent] = {}
        self.calls = 0
        self._server: asyncio.Server
        self._connections: set[asyncio.Transport] = set()

    def add(self, pod_address: str, pod: str) -> None:
        self._agents[pod_address] = _Agent(pod, has_traffic=len(self._agents) % PODS_PER_BUSY_ONE == 0)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "0.0.0.0", AGENT_PORT, backlog=4096)  # noqa: S104 - see the module's docstring

    async def stop(self) -> None:
        """Close every connection."""
        self._server.close()
        for transport in list(self._connections):
            transport.abort()
        await asyncio.sleep(0)  # one turn of the loop, in which the transports close their sockets

    def opened(self, transport: asyncio.Transport) -> None:
        self._connections.add(transport)

    def closed(self, transport: asyncio.Transport) -> None:
        self._connections.discard(transport)

    def answer(self, pod_address: str, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """The HTTP status and the body."""
        self.calls += 1
        agent = self._agents.get(pod_address)
        if agent is None:
            return 503, b"no pod has this address"
        if (method, path) == ("GET", "/v1/state"):
            if agent.has_traffic:
                agent.rounds += random.randrange(10, 1000)  # noqa: S311 - traffic
                agent.render()
            return 200, agent.answer
        if (method, path) != ("PUT", "/v1/draft"):
            return 404, b"the stand-in has no such call"
        asked = SwapRequest.from_json(body)
        if asked.epoch < agent.epoch:
            return 409, json.dumps({"epoch": agent.epoch}).encode()
        agent.version, agent.epoch = asked.version, asked.epoch
        agent.render()
        return 202, agent.answer


class _Connection(asyncio.Protocol):
    """One connection that is kept alive. The protocol is written by hand, because ten thousand pods are called."""

    def __init__(self, agents: AgentStandIns) -> None:
        self._agents = agents
        self._data = b""
        self._transport: asyncio.Transport
        self._address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._agents.opened(transport)
        self._address = transport.get_extra_info("sockname")[0]
        if not self._address.startswith("127."):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._agents.closed(self._transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            header, rest = self._data[:end], self._data[end + 4 :]
            length = _content_length(header)
            if len(rest) < length:
                return
            self._data = rest[length:]
            method, path = header.split(b" ", 2)[:2]
            status, body = self._agents.answer(self._address, method.decode(), path.decode(), rest[:length])
            head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self._transport.write(head.encode() + body)


def _content_length(header: bytes) -> int:
    for line in header.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


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
