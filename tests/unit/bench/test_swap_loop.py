"""The swap loop counts confirmed swaps while answers are in flight, and reports the first swap that failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from aurora_runtime.engine.draft_file_check import WEIGHTS
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault
from tests.bench import swap_loop
from tests.bench.swap_loop import SwapLoop
from tests.unit.fakes import FakeEngine

CONCURRENCY = 4


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in ("untrained", "trained")]
    for folder in made:
        folder.mkdir()
        (folder / WEIGHTS).write_text(folder.name)
    return made


@pytest_asyncio.fixture
async def engine(folders: list[Path]) -> AsyncIterator[tuple[FakeEngine, SwapLoop]]:
    engine = FakeEngine(key=None)
    engine.weights = (folders[0] / WEIGHTS).read_bytes()
    async with engine.running() as url, ClientSession() as session:
        yield engine, SwapLoop(SGLangClient(session, url), folders)


async def test_swaps_with_answers_in_flight_are_counted_and_end_with_the_trained_draft(
    engine: tuple[FakeEngine, SwapLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_loop, "SECONDS_BETWEEN_SWAPS", 0.01)
    fake, loop = engine
    await loop.learn_checksums()
    assert fake.version == "0"
    done = asyncio.ensure_future(asyncio.sleep(0.2))
    await loop.swap_until(done, CONCURRENCY)
    assert (fake.version, fake.weights) == ("1", b"trained")
    assert loop.pauses[CONCURRENCY]
    await loop.check_trained()
    assert loop.failures == []


async def test_the_first_failed_swap_is_reported(engine: tuple[FakeEngine, SwapLoop]) -> None:
    fake, loop = engine
    await loop.learn_checksums()
    fake.faults = {"update_weights_from_tensor": "unloaded"}
    await loop.swap_until(asyncio.ensure_future(asyncio.sleep(0.05)), CONCURRENCY)
    (failure,) = loop.failures
    assert "version 1" in failure
    await loop.check_trained()
    assert len(loop.failures) == 2


async def test_two_drafts_with_one_checksum_are_refused(
    engine: tuple[FakeEngine, SwapLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "checksum", lambda _: "the same")
    with pytest.raises(EngineFault, match="its checksum did not change"):
        await engine[1].learn_checksums()
