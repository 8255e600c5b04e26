"""The client of the agent's HTTP API, for the operator and for a validator that measures on a replica.

Why: both callers need the same limits and the same typed errors, so one client serves both.

Invariants: at most :data:`MAX_CALLS` calls are under way at a time. A call that has begun ends within its deadline. A
call returns a validated record or raises an
:class:`~aurora_protocol.errors.AgentError`. A redirect is not followed, because a pod must not choose which address
the operator calls. The client never retries. The operator repeats its calls at its next
reconciliation, and the validator knows best which of its calls may be repeated.
"""

from __future__ import annotations

import asyncio

import aiohttp

from aurora_protocol.agent_api import (
    AGENT_PORT,
    AgentState,
    MeasurementRequest,
    Refusal,
    SwapRequest,
    TraceBudget,
    TrialRequest,
)
from aurora_protocol.errors import AgentRefused, AgentUnreachable, Fenced, InvalidAgentAnswer, InvalidRecord

CALL_SECONDS = 3.0
"""Default deadline of a call, which an agent answers from memory."""
TRIAL_SECONDS = 900.0
"""Deadline of a trial request: the agent answers after the draft is downloaded, checked and swapped in."""
MAX_CALLS = 100
"""Calls under way at a time. The wait for one to end does not count as the agent's time."""
MAX_BODY_BYTES = 1 << 20
MAX_REFUSAL_BYTES = 8192
MAX_REASON_CHARACTERS = 300


class AgentClient:
    """Calls agents over one HTTP session. Every call carries the token of its own speculator.

    Every method raises :class:`AgentUnreachable` when the agent does not answer in time, :class:`InvalidAgentAnswer`
    when the answer is not a valid record, :class:`Fenced` with the agent's epoch on HTTP 409, and :class:`AgentRefused`
    on other errors.
    """

    def __init__(
        self, session: aiohttp.ClientSession, port: int = AGENT_PORT, *, call_seconds: float = CALL_SECONDS
    ) -> None:
        self._session = session
        self._port = port
        self._call_seconds = call_seconds
        self._calls = asyncio.Semaphore(MAX_CALLS)

    async def state(self, ip: str, token: str) -> AgentState:
        """The state of the pod at ``ip``."""
        return (await self._call("GET", ip, "/v1/state", token))[1]

    async def swap(self, ip: str, token: str, request: SwapRequest) -> AgentState:
        """Order the pod to serve a version. The agent answers at once; its state shows the outcome later.

        Raises :class:`Fenced` when another operator, or this one before losing its status, used a higher epoch.
        """
        return (await self._call("PUT", ip, "/v1/draft", token, request.to_json()))[1]

    async def lease(self, ip: str, token: str, request: MeasurementRequest) -> AgentState:
        """Withdraw the pod for a measurement, renew the lease, or give the pod back. The state shows the outcome.

        Raises :class:`Fenced` when the pod is not, or no longer, withdrawn for this measurement.
        """
        return (await self._call("PUT", ip, "/v1/measurement", token, request.to_json()))[1]

    async def limit_traces(self, ip: str, token: str, budget: TraceBudget) -> AgentState:
        """Order the pod to trace no more than ``budget``."""
        return (await self._call("PUT", ip, "/v1/trace-budget", token, budget.to_json()))[1]

    async def trial(self, ip: str, token: str, request: TrialRequest) -> AgentState | None:
        """Order a withdrawn pod's engine to hold a draft, with an empty prefix cache.

        Returns the state once the engine does. Returns None while requests run on it: call again then.
        """
        status, state = await self._call(
            "PUT", ip, "/v1/measurement/trial", token, request.to_json(), seconds=TRIAL_SECONDS
        )
        return state if status == 200 else None

    async def _call(
        self, method: str, ip: str, path: str, token: str, sent: bytes | None = None, *, seconds: float | None = None
    ) -> tuple[int, AgentState]:
        """The HTTP status, below 300, and the state in the answer."""
        host = f"[{ip}]" if ":" in ip else ip
        url = f"http://{host}:{self._port}{path}"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=seconds or self._call_seconds)
        try:
            async with (
                self._calls,
                self._session.request(
                    method, url, headers=headers, data=sent, timeout=timeout, allow_redirects=False
                ) as response,
            ):
                status = response.status
                if status >= 300:
                    body = await _read(response, MAX_REFUSAL_BYTES)
                    raise _refusal(f"{method} {url}: HTTP {status}", status, body.decode(errors="replace").strip())
                answer = await _read(response, MAX_BODY_BYTES + 1)
            if len(answer) > MAX_BODY_BYTES:
                raise InvalidAgentAnswer(f"{method} {url}: the answer exceeds {MAX_BODY_BYTES} bytes")
            return status, AgentState.from_json(answer)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise AgentUnreachable(f"{method} {url}: {type(error).__name__}; check that the pod runs") from error
        except InvalidRecord as error:
            raise InvalidAgentAnswer(f"{method} {url}: {error}; check that the agent's image fits") from error


def _refusal(call: str, status: int, body: str) -> AgentRefused:
    """The error for HTTP ``status``. Raises :class:`InvalidRecord` when the body of a 409 is not a :class:`Refusal`."""
    if status != 409:
        reason = body[:MAX_REASON_CHARACTERS]
        return AgentRefused(f"{call}: {reason}", status, reason)
    refusal = Refusal.from_json(body)
    reason = refusal.reason[:MAX_REASON_CHARACTERS]
    return Fenced(f"{call}: {reason}", status, reason, refusal.epoch)


async def _read(response: aiohttp.ClientResponse, size: int) -> bytes:
    """The first ``size`` bytes of the body."""
    body = bytearray()
    while len(body) < size and (chunk := await response.content.read(size - len(body))):
        body += chunk
    return bytes(body)
