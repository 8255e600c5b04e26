"""The client against an engine that can be told to fail at any call: never left paused, never a false checksum."""

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

from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.engine.sglang_client import session as session_of_its_own
from aurora_runtime.errors import EngineFault
from tests.unit.fakes import KEY, FakeEngine

SWAP = FakeEngine.ORDERS[:5]


@dataclass
class Scene:
    engine: FakeEngine
    admin: SGLangClient
    file: Path

    def calm(self) -> bool:
        return not (self.engine.paused or self.engine.updating or self.engine.unfenced)


@pytest_asyncio.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


@pytest_asyncio.fixture
async def scene(session: ClientSession, tmp_path: Path) -> AsyncIterator[Scene]:
    engine, file = FakeEngine(), tmp_path / "model.safetensors"
    engine.weights = b"old"
    file.write_bytes(b"new")
    async with engine.running() as url:
        yield Scene(engine, SGLangClient(session, url, KEY), file)


async def test_a_swap_loads_the_draft_in_a_pause(scene: Scene) -> None:
    before = await scene.admin.checksum()
    scene.engine.calls.clear()
    assert await scene.admin.swap(scene.file, 7) > 0
    assert scene.engine.calls == [*SWAP]
    assert scene.calm()
    assert await scene.admin.version() == 7
    assert await scene.admin.checksum() != before
    assert scene.engine.weights == b"new"


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("route", SWAP)
async def test_a_swap_that_fails_leaves_nothing_open(scene: Scene, route: str, fault: str) -> None:
    scene.engine.faults = {route: fault}
    if route == "continue_generation":
        await scene.admin.swap(scene.file, 7)
    else:
        with pytest.raises(EngineFault, match=route):
            await scene.admin.swap(scene.file, 7)
    assert scene.calm()
    await scene.admin.swap(scene.file, 8)
    assert (await scene.admin.version(), scene.calm()) == (8, True)


async def test_a_swap_that_is_cancelled_leaves_nothing_open(scene: Scene) -> None:
    scene.engine.faults = {"update_weights_from_tensor": "slow"}
    task = asyncio.create_task(scene.admin.swap(scene.file, 7))
    async with asyncio.timeout(10):
        while "update_weights_from_tensor" not in scene.engine.calls:  # noqa: ASYNC110 - the calls are all there is
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.engine.calls == [*SWAP]
    assert scene.calm()


async def test_an_engine_that_cannot_be_resumed_is_said(scene: Scene) -> None:
    scene.engine.faults, scene.engine.lasting = {"continue_generation": "before"}, True
    with pytest.raises(EngineFault, match="continue_generation"):
        await scene.admin.swap(scene.file, 7)
    assert scene.engine.calls.count("continue_generation") == 3


async def test_an_engine_whose_ranks_are_unknown_is_not_paused(scene: Scene) -> None:
    scene.engine.ranks = None
    with pytest.raises(EngineFault, match="tp_size"):
        await scene.admin.swap(scene.file, 7)
    assert scene.engine.calls == []


async def test_a_server_without_a_key_is_shown_none(session: ClientSession, tmp_path: Path) -> None:
    engine, file = FakeEngine(key=None), tmp_path / "model.safetensors"
    file.write_bytes(b"new")
    async with engine.running() as url:
        await SGLangClient(session, url).swap(file, 1)
        assert engine.weights == b"new"


async def test_faults_name_the_route_and_never_the_key(scene: Scene, session: ClientSession) -> None:
    scene.engine.key = "another"
    with pytest.raises(EngineFault, match="/weights_checker: 401") as refused:
        await scene.admin.checksum()
    nobody = SGLangClient(session, "http://127.0.0.1:1", KEY)
    with pytest.raises(EngineFault, match="/pause_generation: ClientConnectorError") as unreachable:
        await nobody.pause()
    assert KEY not in f"{refused.value}{unreachable.value}{nobody!r}"


async def test_ready_is_the_engines_word(scene: Scene, session: ClientSession) -> None:
    assert await scene.admin.ready()
    await scene.admin.pause()
    assert not await scene.admin.ready()
    assert not await SGLangClient(session, "http://127.0.0.1:1", KEY).ready()


async def test_a_version_that_is_not_ours_is_a_fault(scene: Scene) -> None:
    scene.engine.version = "default"
    with pytest.raises(EngineFault, match="'default' is not a version of ours"):
        await scene.admin.version()


async def test_a_cache_that_cannot_be_flushed_is_said(scene: Scene) -> None:
    await scene.admin.flush()
    scene.engine.busy = True
    with pytest.raises(EngineFault, match="not at rest"):
        await scene.admin.flush()


async def checksum_of(session: ClientSession, answer: dict[str, Any]) -> str:
    """What the client makes of one answer of ``/weights_checker``."""

    async def answers(_: web.Request) -> web.Response:
        return web.json_response(answer)

    app = web.Application()
    app.add_routes([web.post("/weights_checker", answers)])
    async with TestServer(app) as server:
        return await SGLangClient(session, str(server.make_url("")).rstrip("/")).checksum()


@pytest.mark.parametrize("ranks", [{}, {"ranks": []}, {"ranks": [{"checksums": {}}]}, {"ranks": [{}]}])
async def test_no_draft_has_no_checksum(session: ClientSession, ranks: dict[str, Any]) -> None:
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


async def test_an_engine_that_ends_idle_connections_loses_no_order() -> None:
    """As uvicorn does after five seconds, here after each answer, without a word in it."""
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
    async with server, session_of_its_own() as http:
        admin = SGLangClient(http, url)
        for _ in range(3):
            await admin.begin()
    await asyncio.gather(*served)
    assert len(served) == 3
