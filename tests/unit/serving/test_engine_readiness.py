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

    def __init__(self, folder: PodFolder, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.process, self.port = folder, process, 0
        self.server_info = "{}"
        self.capture: CaptureState | None = CaptureState(boot="b1", ok=True, probe_records=3)
        self.requests: list[dict[str, Any]] = []

    async def check(self, draft: DraftSpec = FIXED) -> None:
        start = engine_start(self.folder.path, port=self.port, draft=draft)
        await asyncio.to_thread(ReadinessCheck(start, self.process).run)

    def controller_reports(self, **fields: Any) -> None:
        write_atomically(self.folder.speculation, SpeculationState(**fields).to_json())

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
async def engine(tmp_path: Path, process: subprocess.Popen[bytes]) -> AsyncIterator[Engine]:
    engine = Engine(PodFolder(tmp_path), process)
    async with TestServer(engine.app()) as server:
        assert server.port is not None
        engine.port = server.port
        yield engine


async def test_an_engine_is_ready_once_it_captured_a_probe_and_the_controller_of_this_start_has_reported(
    engine: Engine,
) -> None:
    engine.controller_reports(boot="the start before")
    with pytest.raises(EngineFault):
        await engine.check(ADAPTIVE)
    engine.controller_reports(boot="b1")
    await engine.check(ADAPTIVE)
    assert all(request["rid"].startswith(PROBE_PREFIX) for request in engine.requests)


async def test_an_engine_that_shows_its_key_or_does_not_capture_is_not_ready(engine: Engine) -> None:
    engine.server_info = f'{{"admin_api_key": "{ADMIN_KEY}"}}'
    with pytest.raises(EngineFault) as shown:
        await engine.check()
    assert ADMIN_KEY not in str(shown.value)
    engine.server_info = "{}"
    engine.capture = CaptureState(boot="b1", ok=False, error="another SGLang")
    with pytest.raises(EngineFault, match=r"no verify round.*; the capture plugin refused: another SGLang"):
        await engine.check()


async def test_an_engine_whose_controller_refused_is_not_ready(engine: Engine) -> None:
    engine.controller_reports(boot="b1", ok=False, error="--enable-mixed-chunk decodes in prefill batches")
    with pytest.raises(EngineFault, match=r"controller refused: --enable-mixed-chunk.*serving\.extraArgs"):
        await engine.check(ADAPTIVE)
    await engine.check()  # a fixed shape needs no controller


def test_an_engine_that_ends_before_it_is_ready_is_reported(tmp_path: Path) -> None:
    with subprocess.Popen(["false"]) as child:
        child.wait()
        with pytest.raises(EngineFault, match="ended with 1 before it was ready"):
            ReadinessCheck(engine_start(tmp_path), child).run()
