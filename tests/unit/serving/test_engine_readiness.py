"""An engine takes requests only when it is ready, hides its key, and has captured a probe."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving.capture.settings import PROBE_PREFIX
from aurora_runtime.serving.launcher import ReadinessCheck
from aurora_runtime.serving.pod_files import CaptureState, PodFolder, SpeculationState, write_atomically
from tests.unit.serving.engine_starts import ADMIN_KEY, engine_start

ADAPTIVE, FIXED = DraftSpec(shape=Shape.ADAPTIVE), DraftSpec(shape=Shape.FIXED)


class Engine:
    """Answers as SGLang does; ``/generate`` writes the capture state that a test sets."""

    def __init__(self, folder: PodFolder) -> None:
        self.folder = folder
        self.server_info = "{}"
        self.capture: CaptureState | None = CaptureState(boot="b1", ok=True, probe_records=3)
        self.requests: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [web.get("/ready", self._ready), web.get("/server_info", self._info), web.post("/generate", self._generate)]
        )
        return app

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _info(self, _: web.Request) -> web.Response:
        return web.Response(text=self.server_info)

    async def _generate(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        if self.capture is not None:
            write_atomically(self.folder.capture, self.capture.to_json())
        return web.json_response({})


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "600"])
    yield child
    child.kill()
    child.wait()


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[tuple[Engine, int]]:
    engine = Engine(PodFolder(tmp_path))
    async with TestServer(engine.app()) as server:
        assert server.port is not None
        yield engine, server.port


async def check(path: Path, port: int, process: subprocess.Popen[bytes], draft: DraftSpec = FIXED) -> None:
    await asyncio.to_thread(ReadinessCheck(engine_start(path, port=port, draft=draft), process).run)


def write_speculation(path: Path, **fields: Any) -> None:
    state = SpeculationState(**fields)
    write_atomically(PodFolder(path).speculation, state.to_json())


async def test_an_engine_is_ready_once_it_captured_a_probe_and_the_controller_of_this_start_has_reported(
    engine: tuple[Engine, int], tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    write_speculation(tmp_path, boot="the start before")
    with pytest.raises(EngineFault):
        await check(tmp_path, engine[1], process, draft=ADAPTIVE)
    write_speculation(tmp_path, boot="b1")
    await check(tmp_path, engine[1], process, draft=ADAPTIVE)
    assert all(request["rid"].startswith(PROBE_PREFIX) for request in engine[0].requests)


async def test_an_engine_that_shows_its_key_or_does_not_capture_is_not_ready(
    engine: tuple[Engine, int], tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    engine[0].server_info = f'{{"admin_api_key": "{ADMIN_KEY}"}}'
    with pytest.raises(EngineFault) as shown:
        await check(tmp_path, engine[1], process)
    assert ADMIN_KEY not in str(shown.value)
    engine[0].server_info = "{}"
    engine[0].capture = CaptureState(boot="b1", ok=False, error="another SGLang")
    with pytest.raises(EngineFault, match=r"no verify round.*; the capture plugin refused: another SGLang"):
        await check(tmp_path, engine[1], process)


async def test_an_engine_whose_controller_refused_is_not_ready(
    engine: tuple[Engine, int], tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    write_speculation(tmp_path, boot="b1", ok=False, error="--enable-mixed-chunk decodes in prefill batches")
    with pytest.raises(EngineFault, match=r"controller refused: --enable-mixed-chunk.*serving\.extraArgs"):
        await check(tmp_path, engine[1], process, draft=ADAPTIVE)
    await check(tmp_path, engine[1], process)  # a fixed shape needs no controller


def test_an_engine_that_ends_before_it_is_ready_is_reported(tmp_path: Path) -> None:
    with subprocess.Popen(["false"]) as child:
        child.wait()
        with pytest.raises(EngineFault, match="ended with 1 before it was ready"):
            ReadinessCheck(engine_start(tmp_path), child).run()
