"""The agents' API as the operator meets it: what an agent may answer, and what it may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from aurora_operator import agent_client as module
from aurora_operator.agent_client import AgentClient
from aurora_operator.errors import AgentError, Fenced
from aurora_protocol.agent_api import CaptureCounters, LiveCounters, SwapPhase, SwapRequest, SwapStatus
from tests.unit.operator.worlds import agent, digest

REQUEST = SwapRequest(version=1, digest=digest(1), epoch=4)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[AgentClient]]


@pytest.fixture(name="serve")
async def _serve() -> AsyncIterator[Serve]:
    servers: list[TestServer] = []
    async with aiohttp.ClientSession() as session:

        async def start(handler: Handler) -> AgentClient:
            app = web.Application()
            app.router.add_get("/v1/state", handler)
            app.router.add_put("/v1/draft", handler)
            server = TestServer(app)
            await server.start_server()
            servers.append(server)
            assert server.port is not None
            return AgentClient(session, server.port)

        yield start
    for server in servers:
        await server.close()


async def test_state_and_swap_carry_the_token_and_the_contract(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        version = 0
        if request.method == "PUT":
            version = SwapRequest.from_json(await request.read()).version
        return web.Response(body=agent("p", version).to_json(), status=202 if request.method == "PUT" else 200)

    agents = await serve(answer)
    assert (await agents.state("127.0.0.1", "secret")).version == 0
    assert (await agents.swap("127.0.0.1", "secret", REQUEST)).version == 1


def nonsense(**said: Any) -> bytes:
    """What would make a status that the API server refuses, or a condition that is too long."""
    return agent("p", 0).model_copy(update=said).to_json()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (409, b"{}", Fenced),
        (401, b"{}", AgentError),
        (500, b"oops", AgentError),
        (200, b"not json", AgentError),
        (200, b'{"pod": "p", "surprise": 1}', AgentError),
        (200, nonsense(version=-1), AgentError),
        (200, nonsense(checksum="x" * 10_000), AgentError),
        (200, nonsense(live=LiveCounters(requests=2**70)), AgentError),
        (200, nonsense(capture=CaptureCounters(answer_tokens=-5)), AgentError),
        (200, nonsense(swap=SwapStatus(phase=SwapPhase.FAILED).model_copy(update={"error": "x" * 10_000})), AgentError),
    ],
)
async def test_anything_else_is_an_agent_error(serve: Serve, status: int, body: bytes, error: type[Exception]) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status)

    agents = await serve(answer)
    with pytest.raises(error):
        await agents.swap("127.0.0.1", "secret", REQUEST)


async def test_an_answer_in_pieces_is_one_answer_and_an_endless_one_is_cut(serve: Serve) -> None:
    endless = False

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        body = b" " * (2 * module.MAX_BODY) if endless else agent("p", 0).to_json()
        for piece in (body[:10], body[10:]):
            await response.write(piece)
            await asyncio.sleep(0.05)
        return response

    agents = await serve(answer)
    assert (await agents.state("127.0.0.1", "secret")).version == 0
    endless = True
    with pytest.raises(AgentError):
        await agents.state("127.0.0.1", "secret")


async def test_an_agent_that_hangs_costs_its_timeout_only(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"{")
        await asyncio.sleep(5)
        return response

    monkeypatch.setattr(module, "TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    agents = await serve(answer)
    with pytest.raises(AgentError, match="TimeoutError"):
        await agents.state("127.0.0.1", "secret")


async def test_nobody_there_is_an_agent_error() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(AgentError):
            await AgentClient(session, 1).state("127.0.0.1", "secret")
