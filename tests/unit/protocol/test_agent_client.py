"""The client of the agent's API: which answers it accepts, and which error it raises for every other answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aurora_protocol import agent_client
from aurora_protocol.agent_api import (
    CaptureCounters,
    LiveCounters,
    MeasurementRequest,
    Refusal,
    SwapPhase,
    SwapRequest,
    SwapStatus,
    TraceBudget,
    TrialRequest,
)
from aurora_protocol.agent_client import CALL_SECONDS, MAX_BODY_BYTES, AgentClient
from aurora_protocol.errors import AgentRefused, AgentUnreachable, Fenced, InvalidAgentAnswer
from tests.unit.connections import settled_connections
from tests.unit.operator.worlds import agent, digest

REQUEST = SwapRequest(version=1, digest=digest(1), epoch=4)
LEASE = MeasurementRequest(measurement="job", epoch=4, lease_seconds=60)
TRIAL = TrialRequest(measurement="job", version=1, digest="0" * 64)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[AgentClient]]


@pytest.fixture(name="serve")
async def _serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []
    async with aiohttp.ClientSession() as session:

        async def start(handler: Handler, call_seconds: float = CALL_SECONDS) -> AgentClient:
            app = web.Application()
            app.router.add_get("/v1/state", handler)
            app.router.add_put("/v1/draft", handler)
            app.router.add_put("/v1/trace-budget", handler)
            app.router.add_put("/v1/measurement", handler)
            app.router.add_put("/v1/measurement/trial", handler)
            server = TestServer(app, host="0.0.0.0")  # noqa: S104 - tests call several addresses of the loopback
            await server.start_server()
            servers.append(server)
            assert server.port is not None
            return AgentClient(session, server.port, call_seconds=call_seconds)

        yield start
    await settled_connections()
    for server in servers:
        await server.close()


async def test_state_and_swap_send_the_token_and_return_the_agents_state(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        version = 0
        if request.method == "PUT":
            version = SwapRequest.from_json(await request.read()).version
        return web.Response(body=agent("p", version).to_json(), status=202 if request.method == "PUT" else 200)

    agents = await serve(answer)
    assert (await agents.state("127.0.0.1", "secret")).version == 0
    assert (await agents.swap("127.0.0.1", "secret", REQUEST)).version == 1


async def test_lease_and_trial_send_their_requests_and_a_trial_under_way_has_no_state(serve: Serve) -> None:
    received: list[object] = []
    status = 202

    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        model = TrialRequest if request.path.endswith("/trial") else MeasurementRequest
        received.append(model.from_json(await request.read()))
        return web.Response(body=agent("p", 3).to_json(), status=status)

    agents = await serve(answer)
    assert (await agents.lease("127.0.0.1", "secret", LEASE)).version == 3
    assert await agents.trial("127.0.0.1", "secret", TRIAL) is None
    status = 200
    state = await agents.trial("127.0.0.1", "secret", TRIAL)
    assert state is not None
    assert state.version == 3
    assert received == [LEASE, TRIAL, TRIAL]


async def test_a_budget_is_sent_and_the_agents_state_returned(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/v1/trace-budget"
        budget = TraceBudget.from_json(await request.read())
        return web.Response(body=agent("p", 3, trace_budget=budget).to_json(), status=202)

    agents = await serve(answer)
    budget = TraceBudget(tokens_per_minute=700)
    assert (await agents.limit_traces("127.0.0.1", "secret", budget)).trace_budget == budget


def invalid_state(**fields: Any) -> bytes:
    """A state with values that the API server would refuse in a status or a condition."""
    return agent("p", 0).model_copy(update=fields).to_json()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b"{}", AgentRefused),
        (500, b"oops", AgentRefused),
        (409, b"{}", InvalidAgentAnswer),
        (409, b"a swap is running", InvalidAgentAnswer),
        (409, b'{"reason": "x", "epoch": 99999999999999999999}', InvalidAgentAnswer),
        (200, b"not json", InvalidAgentAnswer),
        (200, b'{"pod": "p", "boot": 1}', InvalidAgentAnswer),
        (200, invalid_state(version=-1), InvalidAgentAnswer),
        (200, invalid_state(checksum="x" * 10_000), InvalidAgentAnswer),
        (200, invalid_state(live=LiveCounters(requests=2**70)), InvalidAgentAnswer),
        (200, invalid_state(capture=CaptureCounters(answer_tokens=-5)), InvalidAgentAnswer),
        (
            200,
            invalid_state(swap=SwapStatus(phase=SwapPhase.FAILED).model_copy(update={"error": "x" * 10_000})),
            InvalidAgentAnswer,
        ),
    ],
)
async def test_every_other_answer_is_an_agent_error(
    serve: Serve, status: int, body: bytes, error: type[Exception]
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status)

    agents = await serve(answer)
    with pytest.raises(error):
        await agents.swap("127.0.0.1", "secret", REQUEST)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(serve: Serve, status: int) -> None:
    called: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        called.append(request.host)
        location = f"http://127.0.0.2:{request.url.port}/v1/state"
        return web.Response(status=status, headers={"Location": location})

    agents = await serve(redirect)
    for call in (agents.state("127.0.0.1", "secret"), agents.swap("127.0.0.1", "secret", REQUEST)):
        with pytest.raises(AgentRefused, match=f"HTTP {status}"):
            await call
    assert len(called) == 2
    assert not any(host.startswith("127.0.0.2") for host in called)


async def test_a_refusal_carries_the_status_and_the_agents_own_text(serve: Serve) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="the engine is down\n" + "x" * 10_000, status=503)

    agents = await serve(answer)
    with pytest.raises(AgentRefused, match="HTTP 503: the engine is down") as raised:
        await agents.lease("127.0.0.1", "secret", LEASE)
    assert raised.value.status == 503
    assert raised.value.reason.startswith("the engine is down")
    assert len(raised.value.reason) <= 300


async def test_a_conflict_carries_the_epoch_of_the_last_order(serve: Serve) -> None:
    refusal = Refusal(reason="epoch 4 is older than epoch 41\n" + "x" * 900, epoch=41)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=refusal.to_json(), status=409)

    agents = await serve(answer)
    with pytest.raises(Fenced, match="HTTP 409: epoch 4 is older than epoch 41") as raised:
        await agents.swap("127.0.0.1", "secret", REQUEST)
    assert (raised.value.status, raised.value.epoch) == (409, 41)
    assert len(raised.value.reason) <= 300
    refusal = Refusal(reason="another measurement holds the pod")
    with pytest.raises(Fenced) as raised:
        await agents.swap("127.0.0.1", "secret", REQUEST)
    assert raised.value.epoch is None, "the agent accepted no order"


async def test_an_answer_in_pieces_is_joined_and_one_that_is_too_long_is_refused(serve: Serve) -> None:
    endless = False

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        body = b" " * (2 * MAX_BODY_BYTES) if endless else agent("p", 0).to_json()
        for piece in (body[:10], body[10:]):
            await response.write(piece)
            await asyncio.sleep(0.05)
        return response

    agents = await serve(answer)
    assert (await agents.state("127.0.0.1", "secret")).version == 0
    endless = True
    with pytest.raises(InvalidAgentAnswer):
        await agents.state("127.0.0.1", "secret")


async def test_a_call_to_an_agent_that_hangs_ends_at_its_deadline(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        await asyncio.sleep(5)
        return response

    agents = await serve(answer, call_seconds=0.2)
    with pytest.raises(AgentUnreachable, match="TimeoutError"):
        await agents.state("127.0.0.1", "secret")


async def test_an_agent_that_does_not_listen_is_unreachable() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(AgentUnreachable):
            await AgentClient(session, 1).state("127.0.0.1", "secret")


async def test_the_wait_for_a_turn_does_not_count_as_the_agents_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[str] = []
    begun, release = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        paths.append(request.path)
        if request.path.endswith("/trial"):
            begun.set()
            await release.wait()
        return web.Response(body=agent("p", 0).to_json())

    monkeypatch.setattr(agent_client, "MAX_CALLS", 1)
    agents = await serve(answer, call_seconds=2)
    trial = asyncio.create_task(agents.trial("127.0.0.1", "secret", TRIAL))
    await begun.wait()
    waits = asyncio.create_task(agents.state("127.0.0.1", "secret"))
    await asyncio.sleep(2.5)
    assert len(paths) == 1, "no call begins before it has a turn"
    release.set()
    assert await waits == await trial, "it waited longer than an agent may take, and was answered"
