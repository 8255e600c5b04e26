"""A stand-in for the agents of all pods: one HTTP server with one loopback address for each pod.

Linux answers on every address of 127.0.0.0/8, so a server on all addresses sees in each connection which pod was
called. The stand-in answers ``GET /v1/state`` and ``PUT /v1/draft`` as an agent at rest does. A swap succeeds at once.
One pod in ten has traffic. Connections from outside the loopback are closed unanswered.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass

from tests.bench.operator.trained_records import ACTIVE, EPOCH

from aurora_protocol.agent_api import AGENT_PORT, AgentState, LiveCounters, SwapRequest, SwapStatus

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
        self.counts: Counter[str] = Counter()
        """``<method> <path>`` -> calls."""
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
        self.counts[f"{method} {path}"] += 1
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
