"""Fixtures of the agent's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer

from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.pod_registry import PodRegistry
from tests.assets.signing import KEYS
from tests.unit.fakes import KEY, FolderObjects
from tests.unit.serving.agent.rigs import PodRig


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[PodRig]:
    rig = PodRig(tmp_path)
    rig.engine.withdrawal_file = rig.folder.withdrawal
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(rig.engine.running())
        rig.client = SGLangClient(await stack.enter_async_context(ClientSession()), url, KEY)
        rig.start_engine("b1")
        rig.start_agent()
        assert await rig.pod.ready()
        rig.http = await stack.enter_async_context(TestClient(TestServer(rig.application())))
        rig.engine.calls.clear()
        yield rig


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    objects = FolderObjects(tmp_path / "store")
    objects.path.mkdir()
    return objects


@pytest.fixture
def registry(objects: FolderObjects) -> PodRegistry:
    return PodRegistry(objects, KEYS)
