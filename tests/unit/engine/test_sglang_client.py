"""The client reports faults by route, never shows the key, and returns no checksum without a draft."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from aurora_runtime.engine.draft_swap import load_in_pause
from aurora_runtime.engine.draft_update import DIGEST_BUFFER, draft_report
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.errors import EngineFault, EngineUnreachable
from aurora_runtime.validation.store_reads import FetchedDraft
from tests.unit.fakes import KEY, FakeEngine


@dataclass
class Scene:
    engine: FakeEngine
    client: SGLangClient


@pytest_asyncio.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


@pytest_asyncio.fixture
async def scene(session: ClientSession) -> AsyncIterator[Scene]:
    engine = FakeEngine()
    async with engine.running() as url:
        yield Scene(engine, SGLangClient(session, url, KEY))


async def test_a_client_without_a_key_sends_none(session: ClientSession, tmp_path: Path) -> None:
    engine, draft = FakeEngine(key=None), FetchedDraft(tmp_path, 1)
    draft.weights.write_bytes(b"new")
    async with engine.running() as url:
        await load_in_pause(SGLangClient(session, url), draft)
        assert engine.weights == b"new"


async def test_faults_name_the_route_and_never_the_key(scene: Scene, session: ClientSession) -> None:
    scene.engine.key = "another"
    with pytest.raises(EngineFault, match="/weights_checker: 401") as refused:
        await scene.client.draft_checksum()
    unreachable = SGLangClient(session, "http://127.0.0.1:1", KEY)
    with pytest.raises(EngineUnreachable, match="/pause_generation: ClientConnectorError") as connection:
        await unreachable.pause_generation()
    assert KEY not in f"{refused.value}{connection.value}{unreachable!r}"


async def test_a_paused_or_missing_engine_is_not_ready(scene: Scene, session: ClientSession) -> None:
    assert await scene.client.is_ready()
    await scene.client.pause_generation()
    assert not await scene.client.is_ready()
    assert not await SGLangClient(session, "http://127.0.0.1:1", KEY).is_ready()


async def test_an_engine_with_running_requests_does_not_flush_its_cache(scene: Scene) -> None:
    await scene.client.flush_prefix_cache()
    assert await scene.client.flush_if_idle()
    scene.engine.has_running_requests = True
    assert not await scene.client.flush_if_idle()
    with pytest.raises(EngineFault):
        await scene.client.flush_prefix_cache()


@contextlib.asynccontextmanager
async def answering(session: ClientSession, answer: Any) -> AsyncIterator[SGLangClient]:
    """A client of a server that gives ``answer`` on every route."""

    async def answers(_: web.Request) -> web.Response:
        return web.json_response(answer)

    app = web.Application()
    app.add_routes([web.route("*", "/{route}", answers)])
    async with TestServer(app) as server:
        yield SGLangClient(session, str(server.make_url("")).rstrip("/"))


async def checksum_of(session: ClientSession, answer: dict[str, Any]) -> str:
    """The client's checksum of one answer of ``/weights_checker``."""
    async with answering(session, answer) as client:
        return await client.draft_checksum()


async def test_an_answer_that_is_no_object_is_a_fault(session: ClientSession) -> None:
    async with answering(session, ["0.5.23"]) as client:
        for call in (client.draft_version(), client.tensor_parallel_ranks(), client.generate({}, timeout_seconds=5)):
            with pytest.raises(EngineFault):
                await call


@pytest.mark.parametrize("ranks", [{}, {"ranks": []}, {"ranks": [{"checksums": {}}]}, {"ranks": [{}]}])
async def test_an_engine_without_a_draft_has_no_checksum(session: ClientSession, ranks: dict[str, Any]) -> None:
    with pytest.raises(EngineFault, match="/weights_checker: no"):
        await checksum_of(session, {"success": True, "per_engine_checksum": "e3b0c442"} | ranks)


async def test_a_checksum_covers_every_tensor_of_every_rank(session: ClientSession) -> None:
    def ranks(*sums: dict[str, str]) -> dict[str, Any]:
        return {"ranks": [{"checksums": of_rank, "parallelism_info": {"role": "draft"}} for of_rank in sums]}

    whole = await checksum_of(session, ranks({"a": "1", "b": "2"}, {"a": "3", "b": "4"}))
    assert whole == await checksum_of(session, ranks({"b": "2", "a": "1"}, {"b": "4", "a": "3"}))
    assert whole != await checksum_of(session, ranks({"a": "1", "b": "2"}, {"a": "3", "b": "5"}))
    assert whole != await checksum_of(session, ranks({"a": "3", "b": "4"}, {"a": "1", "b": "2"}))
    assert whole != await checksum_of(session, ranks({"a": "1", "b": "2"}))


async def test_the_digest_of_each_rank_is_reported_beside_a_checksum_of_weights_alone() -> None:
    name, digest = f"draft.{DIGEST_BUFFER}", "ab" * 32
    plain = draft_report({"ranks": [{"checksums": {"draft.w": "1"}}] * 2})
    loaded = draft_report({"ranks": [{"checksums": {"draft.w": "1", name + digest: "2"}}] * 2})
    torn = draft_report({"ranks": [{"checksums": {"draft.w": "1", name + d: "2"}} for d in (digest, "cd" * 32)]})
    assert plain.checksum == loaded.checksum == torn.checksum, "a draft gives one checksum, loaded or started with"
    assert (plain.is_of_start, loaded.is_of_start, torn.is_of_start) == (True, False, False)
    assert [report.is_of(digest) for report in (plain, loaded, torn)] == [False, True, False]
    assert str(torn) == "abababababab and cdcdcdcdcdcd"
    with pytest.raises(ValueError, match="no draft weights"):
        draft_report({"ranks": [{"checksums": {name + digest: "2"}}]})


async def test_no_call_is_lost_on_an_idle_connection_that_the_engine_closes() -> None:
    """Uvicorn closes an idle connection after five seconds; this server closes it after each answer, unannounced."""
    served = list[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, open_session() as http:
        client = SGLangClient(http, url)
        for _ in range(3):
            await client.begin_weight_update()
    await asyncio.gather(*served)
    assert len(served) == 3
