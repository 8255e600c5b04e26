"""Loading a draft into an engine that fails at any call never leaves it paused and never confirms a wrong draft."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession

from aurora_runtime.engine.draft_swap import DraftSwap, load_in_pause
from aurora_runtime.engine.draft_update import IN_PARTS
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault
from tests.unit.fakes import KEY, FakeEngine

SWAP_ROUTES = FakeEngine.ADMIN_ROUTES[:5]
UPDATE = "update_weights_from_tensor"


@dataclass(frozen=True)
class File:
    version: int
    weights: Path
    claimed: str = ""

    @property
    def digest(self) -> str:
        return self.claimed or hashlib.sha256(self.weights.read_bytes()).hexdigest()


@dataclass
class Scene:
    engine: FakeEngine
    client: SGLangClient
    folder: Path

    def file(self, version: int, data: bytes) -> File:
        path = self.folder / f"{version}.safetensors"
        path.write_bytes(data)
        return File(version, path)

    def runs_normally(self) -> bool:
        return not (self.engine.paused or self.engine.updating or self.engine.unpaused_updates)


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    engine = FakeEngine()
    engine.weights = b"old"
    async with engine.running() as url, ClientSession() as session:
        yield Scene(engine, SGLangClient(session, url, KEY), tmp_path)


async def test_a_load_that_is_cancelled_leaves_no_pause_and_no_update_open(scene: Scene) -> None:
    scene.engine.faults = {UPDATE: "slow"}
    task = asyncio.create_task(load_in_pause(scene.client, scene.file(7, b"new")))
    async with asyncio.timeout(10):
        while UPDATE not in scene.engine.calls:  # noqa: ASYNC110 - the calls are all there is
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.engine.calls == [*SWAP_ROUTES]
    assert scene.runs_normally()


async def test_an_engine_that_cannot_be_resumed_is_reported(scene: Scene) -> None:
    scene.engine.faults, scene.engine.faults_persist = {"continue_generation": "before"}, True
    with pytest.raises(EngineFault, match="continue_generation"):
        await load_in_pause(scene.client, scene.file(7, b"new"))
    assert scene.engine.calls.count("continue_generation") == 3


async def test_an_engine_whose_ranks_are_unknown_is_not_paused(scene: Scene) -> None:
    scene.engine.ranks = None
    with pytest.raises(EngineFault, match="tp_size"):
        await load_in_pause(scene.client, scene.file(7, b"new"))
    assert scene.engine.calls == []


async def test_a_load_is_confirmed_by_version_digest_and_checksum(scene: Scene) -> None:
    swap, old, new = DraftSwap(scene.client), scene.file(0, b"old"), scene.file(1, b"new")
    await swap.remember_checksum(old)
    assert await swap.load(new) > 0
    assert swap.has_confirmed(new.digest)
    assert not swap.paused
    await swap.load(old)
    assert swap.has_confirmed(old.digest)
    assert not swap.has_confirmed(new.digest)
    assert await swap.checksum(0) == await scene.client.draft_checksum()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("silent", "holds version 0 after the update to version 1"),
        ("version", "holds version 99"),
        ("unloaded", "version 1: the engine holds the draft of its start, and 11507a0e2f5e was asked for"),
        ("one rank", "holds the draft 11507a0e2f5e and of its start, and 11507a0e2f5e was asked for"),
        ("no draft", "no checksums in the answer"),
    ],
)
async def test_a_load_that_did_not_happen_is_not_confirmed(scene: Scene, fault: str, why: str) -> None:
    swap, new = DraftSwap(scene.client), scene.file(1, b"new")
    scene.engine.faults = {UPDATE: fault}
    with pytest.raises(EngineFault, match=why):
        await swap.load(new)
    assert not swap.has_confirmed(new.digest)
    assert scene.runs_normally()


async def test_a_file_must_give_the_checksum_that_it_gave_before(scene: Scene) -> None:
    new = scene.file(1, b"new")
    swap = DraftSwap(scene.client, {new.digest: "another checksum"})
    with pytest.raises(EngineFault):
        await swap.load(new)
    swap = DraftSwap(scene.client)
    await swap.load(new)


async def test_an_engine_without_a_draft_is_not_paused(scene: Scene) -> None:
    """SGLang would call the update a success and take the version over (NGRAM)."""
    scene.engine.digests = []
    with pytest.raises(EngineFault, match="/weights_checker: no checksums"):
        await DraftSwap(scene.client).load(scene.file(1, b"new"))
    assert scene.engine.calls == ["weights_checker"]
    assert await scene.client.draft_version() == 0


async def test_a_draft_in_parts_is_never_taken_for_the_one_that_the_engine_started_with(scene: Scene) -> None:
    swap, old = DraftSwap(scene.client), scene.file(0, b"old")
    scene.engine.digests = ["", IN_PARTS]
    await swap.remember_checksum(old)
    assert not await swap.holds(old)
    scene.engine.faults = {UPDATE: "unloaded"}
    with pytest.raises(EngineFault):
        await swap.load(old)
    await swap.restore(old)
    assert scene.engine.digests == [old.digest] * 2


async def test_the_checksum_of_another_file_is_not_remembered(scene: Scene) -> None:
    old, new = scene.file(0, b"old"), scene.file(1, b"new")
    await DraftSwap(scene.client).load(new)
    swap = DraftSwap(scene.client)
    await swap.remember_checksum(File(1, old.weights))
    assert not await swap.holds(File(1, old.weights))
    await swap.remember_checksum(new)
    assert await swap.holds(new)


@pytest.mark.parametrize("fault", ["before", "after", "silent", "version", "unloaded", "one rank"])
async def test_a_failed_load_restores_the_fallback(scene: Scene, fault: str) -> None:
    swap, old, new = DraftSwap(scene.client), scene.file(0, b"old"), scene.file(1, b"new")
    await swap.remember_checksum(old)
    scene.engine.faults = {UPDATE: fault}
    with pytest.raises(EngineFault):
        await swap.load_or_restore(new, old)
    assert (scene.engine.weights, scene.engine.version) == (b"old", "0")
    assert scene.runs_normally()
    await swap.load_or_restore(new, old)
    assert (scene.engine.weights, scene.engine.version) == (b"new", "1")


async def test_restoring_a_draft_that_the_engine_still_holds_loads_nothing(scene: Scene) -> None:
    swap, old = DraftSwap(scene.client), scene.file(0, b"old")
    await swap.remember_checksum(old)
    scene.engine.calls.clear()
    await swap.restore(old)
    assert scene.engine.calls == ["weights_checker"]
    assert swap.has_confirmed(old.digest)
