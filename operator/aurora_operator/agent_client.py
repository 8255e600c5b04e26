"""Talking to agents: read a pod's state, ask for a swap, withdraw a pod and give it back.

Invariant: a call ends within :data:`TIMEOUT`, and what an agent answers is a validated record or an
:class:`~aurora_operator.errors.AgentError`. Every call is made anew by the next look, so there are no retries here.
"""

from __future__ import annotations

import aiohttp

from aurora_operator.errors import AgentError, Fenced
from aurora_protocol.agent_api import AGENT_PORT, AgentState, MeasurementRequest, SwapRequest
from aurora_protocol.errors import InvalidRecord

TIMEOUT = aiohttp.ClientTimeout(total=3)
MAX_BODY = 1 << 20


class AgentClient:
    """One HTTP session for all agents of all speculators; every call carries its own speculator's token."""

    def __init__(self, session: aiohttp.ClientSession, port: int = AGENT_PORT) -> None:
        self._session = session
        self._port = port

    async def _call(self, method: str, ip: str, path: str, token: str, body: bytes | None = None) -> AgentState:
        host = f"[{ip}]" if ":" in ip else ip
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url = f"http://{host}:{self._port}{path}"
        try:
            async with self._session.request(method, url, headers=headers, data=body, timeout=TIMEOUT) as response:
                if response.status == 409:
                    raise Fenced(f"{method} {url}: the agent has seen a higher epoch, or does another thing")
                if response.status >= 300:
                    raise AgentError(f"{method} {url}: HTTP {response.status}")
                return AgentState.from_json(await _body(response))
        except (TimeoutError, aiohttp.ClientError, InvalidRecord, OSError) as error:
            raise AgentError(f"{method} {url}: {type(error).__name__}") from error

    async def state(self, ip: str, token: str) -> AgentState:
        """What the pod at ``ip`` serves."""
        return await self._call("GET", ip, "/v1/state", token)

    async def swap(self, ip: str, token: str, request: SwapRequest) -> AgentState:
        """Ask the pod to serve a version; it answers at once, the outcome shows in its state.

        Raises :class:`Fenced` when another operator, or this one before its status was lost, used a higher epoch.
        """
        return await self._call("PUT", ip, "/v1/draft", token, request.to_json())

    async def measure(self, ip: str, token: str, request: MeasurementRequest) -> AgentState:
        """Withdraw the pod for a measurement or give it back; its state shows what came of it. Raises as above."""
        return await self._call("PUT", ip, "/v1/measurement", token, request.to_json())


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, but not more of it than a state can be."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise AgentError(f"{response.method} {response.url}: the answer is too long")
    return bytes(body)
