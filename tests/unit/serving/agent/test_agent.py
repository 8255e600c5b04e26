"""The agent's HTTP API, its metrics, its view of the engine, and the uploader."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer

from aurora_protocol.agent_api import AgentState
from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.serving.agent import uploader as uploader_module
from aurora_runtime.serving.agent.http_api import application
from aurora_runtime.serving.agent.measurement import MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_state import Pod
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import CaptureState, EngineState, write_atomically
from aurora_store import Registry
from tests.unit.fakes import KEY, FolderObjects
from tests.unit.serving.agent.test_swapper import Rig

TOKEN = "the-agent-token"  # noqa: S105 - a test's
AUTH = {"Authorization": f"Bearer {TOKEN}"}


class AgentRig(Rig):
    client: SGLangClient
    http: TestClient  # type: ignore[type-arg]
    metrics: Metrics
    measuring: MeasurementLease
    uploader: Uploader

    def engine_is(self, *, ready: bool, boot: str = "b1") -> None:
        write_atomically(self.folder.engine, EngineState(boot=boot, ready=ready, started=datetime.now(UTC)).to_json())

    async def state(self) -> AgentState:
        answer = await self.http.get("/v1/state", headers=AUTH)
        return AgentState.from_json(await answer.read())


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[AgentRig]:
    rig = AgentRig(tmp_path)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(rig.engine.running())
        rig.client = SGLangClient(await stack.enter_async_context(ClientSession()), url, KEY)
        rig.metrics = Metrics()
        rig.swapper = Swapper(rig.client, rig.drafts, rig.folder, finished=rig.metrics.swap_finished)
        rig.uploader = Uploader(rig.folder.spool, rig.registry)
        rig.measuring = MeasurementLease(rig.client, rig.swapper, rig.drafts, rig.folder, draft_tokens=4, token=TOKEN)
        pod = Pod("pod-0", rig.folder, rig.client, rig.drafts, rig.swapper, rig.uploader, rig.measuring, draft_tokens=4)
        app = application(pod, rig.swapper, rig.measuring, rig.metrics, TOKEN)
        rig.http = await stack.enter_async_context(TestClient(TestServer(app)))
        yield rig


async def test_only_probes_and_metrics_are_open(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await rig.http.get(path)).status == 200
    wish = rig.wish(1, 2).to_json()
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {KEY}"},
    ):
        assert (await rig.http.get("/v1/state", headers=headers)).status == 401
        assert (await rig.http.put("/v1/draft", data=wish, headers=headers)).status == 401
    assert rig.serves(0)
    assert rig.engine.calls.count("pause_generation") == 0


async def test_a_swap_over_http(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    answer = await rig.http.put("/v1/draft", data=rig.wish(1, 2).to_json(), headers=AUTH)
    assert answer.status == 202
    await rig.swapper.wait()
    state = await rig.state()
    assert (state.version, state.pod, state.boot, state.engine_ready, state.lineage) == (1, "pod-0", "b1", True, 1)
    assert state.checksum == await rig.client.checksum()
    assert (await rig.http.put("/v1/draft", data=rig.wish(0, 1).to_json(), headers=AUTH)).status == 409
    assert (await rig.http.put("/v1/draft", data=b'{"version": 1}', headers=AUTH)).status == 400
    text = await (await rig.http.get("/metrics")).text()
    assert "aurora_draft_version 1.0" in text
    assert 'aurora_swaps_total{result="success"} 1.0' in text
    assert "aurora_swap_pause_seconds_count 1.0" in text
    assert "aurora_requests_total 2.0" in text
    assert KEY not in text
    assert TOKEN not in text


async def test_the_pod_is_ready_only_when_the_launcher_says_so(rig: AgentRig) -> None:
    assert (await rig.http.get("/readyz")).status == 503
    rig.engine_is(ready=False)
    assert (await rig.http.get("/readyz")).status == 503
    assert (await rig.http.put("/v1/draft", data=rig.wish(1, 2).to_json(), headers=AUTH)).status == 503
    rig.engine_is(ready=True)
    assert (await rig.http.get("/readyz")).status == 200
    rig.engine.paused = True
    assert (await rig.http.get("/readyz")).status == 503, "a pause that is not ours"
    rig.swapper.pausing = True
    assert (await rig.http.get("/readyz")).status == 200, "our own pause is too short to leave the Service"


async def test_a_new_boot_of_the_engine_is_taken_over(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    first = await rig.state()
    rig.engine.weights = b"another engine"
    rig.engine.paused = True
    rig.engine_is(ready=True, boot="b2")
    second = await rig.state()
    assert second.boot == "b2"
    assert second.checksum != first.checksum, "a checksum is not remembered across engines"
    assert not rig.engine.paused


async def test_the_checksum_is_asked_for_once(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    for _ in range(5):
        await rig.state()
    assert rig.engine.calls.count("weights_checker") == 1


async def test_an_engine_that_does_not_answer_is_not_ready(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    await rig.state()
    rig.engine.version = "default"
    state = await rig.state()
    assert (state.version, state.engine_ready) == (None, False)


async def test_capture_counters_come_from_the_plugin(rig: AgentRig) -> None:
    counters = CaptureState(
        boot="b1", ok=True, captured_records=9, dropped_records=2, errors=1, answer_tokens=7, shards_dropped=4,
        updated=datetime.now(UTC),
    )  # fmt: skip
    write_atomically(rig.folder.capture, counters.to_json())
    capture = (await rig.state()).capture
    assert (capture.captured_records, capture.dropped_records) == (9, 3)
    assert (capture.answer_tokens, capture.shards_dropped) == (7, 4)


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        application(None, None, None, Metrics(), "")  # type: ignore[arg-type]


def shard(spool: Path, seq: int, data: bytes = b"data") -> Path:
    spool.mkdir(parents=True, exist_ok=True)
    stem = spool / f"pod-0-0b-{seq:08d}"
    manifest = ShardManifest(
        lineage=1, pod="pod-0", boot="0b", seq=seq,
        file=FileRef(name=f"{stem.name}.safetensors", sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
        requests=1, tokens=1, answer_tokens=1, rounds=1, proposed=1, accepted=0, dropped_records=0,
        draft_versions=(0,), created=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    stem.with_suffix(".safetensors").write_bytes(data)
    stem.with_suffix(".json").write_bytes(manifest.to_json())
    return stem.with_suffix(".safetensors")


@pytest.fixture
def uploads(tmp_path: Path) -> tuple[Uploader, FolderObjects, Path]:
    objects = FolderObjects(tmp_path / "store")
    objects.path.mkdir()
    return Uploader(tmp_path / "spool", Registry(objects)), objects, tmp_path / "spool"


def test_shards_leave_the_spool_once_the_store_has_them(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    uploader.drain()
    for seq in range(3):
        shard(spool, seq)
    uploader.drain()
    registry = Registry(objects)
    keys = list(registry.shard_keys(1))
    assert [registry.shard(key)[0].seq for key in keys] == [0, 1, 2]
    assert list(spool.iterdir()) == []
    assert uploader.counters.uploaded == 3


def test_a_shard_whose_manifest_was_not_written_is_sent_again(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    shard(spool, 0)
    real = objects.create

    def lost(key: str, data: bytes) -> None:
        objects.create = real  # type: ignore[method-assign]
        objects.refuse = 1
        real(key, data)

    objects.create = lost  # type: ignore[method-assign]
    with pytest.raises(Exception, match="refuses"):
        uploader.drain()
    assert list(Registry(objects).shard_keys(1)) == [], "no manifest, no shard"
    uploader.drain()
    assert len(list(Registry(objects).shard_keys(1))) == 1
    assert uploader.counters.uploaded == 1


def test_a_shard_that_differs_from_its_manifest_is_dropped(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    shard(spool, 0).write_bytes(b"daTa")
    shard(spool, 1).with_suffix(".json").write_bytes(b"{}")
    shard(spool, 2).unlink()
    shard(spool, 3)
    uploader.drain()
    assert [Registry(objects).shard(key)[0].seq for key in Registry(objects).shard_keys(1)] == [3]
    assert (uploader.counters.uploaded, uploader.counters.dropped) == (1, 2), "the third was the writer's to count"
    assert list(spool.iterdir()) == []


async def test_a_store_outage_is_waited_out(
    uploads: tuple[Uploader, FolderObjects, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader, objects, spool = uploads
    monkeypatch.setattr("aurora_runtime.serving.agent.uploader.FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr("aurora_runtime.serving.agent.uploader.POLL_S", 0.01)
    shard(spool, 0)
    objects.down = True
    task = asyncio.create_task(uploader.run())
    await asyncio.sleep(0.1)
    assert not task.done()
    objects.down = False
    async with asyncio.timeout(10):
        while uploader.counters.uploaded == 0:  # noqa: ASYNC110 - the counter is all there is to see
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest_asyncio.fixture
async def uploading(
    uploads: tuple[Uploader, FolderObjects, Path], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Uploader, FolderObjects, Path]]:
    """The uploader at work, with short waits."""
    monkeypatch.setattr(uploader_module, "POLL_S", 0.02)
    task = asyncio.create_task(uploads[0].run())
    yield uploads
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_pod_that_ends_uploads_what_its_engine_writes_to_the_last(
    uploading: tuple[Uploader, FolderObjects, Path],
) -> None:
    uploader, objects, spool = uploading
    drains = True
    shard(spool, 0)
    finishing = asyncio.create_task(uploader.finish(600, settle=0.1, serving=lambda: drains, ending=lambda: True))
    await asyncio.sleep(0.1)
    assert not finishing.done(), "the engine still answers, and traces"
    shard(spool, 1)
    drains = False
    await finishing
    assert len(list(Registry(objects).shard_keys(1))) == 2
    assert list(spool.iterdir()) == []
    assert uploader.counters.dropped == 0


async def test_a_pod_that_ends_waits_for_no_store_longer_than_it_may_and_counts_what_is_lost(
    uploading: tuple[Uploader, FolderObjects, Path], caplog: pytest.LogCaptureFixture
) -> None:
    uploader, objects, spool = uploading
    objects.down = True
    for seq in range(3):
        shard(spool, seq)
    await uploader.finish(0.2, settle=0.1, serving=lambda: False, ending=lambda: True)
    assert uploader.counters.dropped == 3
    assert "3 shards (12 bytes) are lost with the pod" in caplog.text
    objects.down = False
    uploader.drain()
    assert uploader.counters.uploaded == 0, "what was counted as lost is not uploaded after all"


async def test_what_was_given_up_is_in_the_metric(rig: AgentRig) -> None:
    rig.objects.down = True
    shard(rig.folder.spool, 0)
    await rig.uploader.finish(0, settle=0.1, serving=lambda: False, ending=lambda: True)
    assert "aurora_shards_dropped_total 1.0" in await (await rig.http.get("/metrics")).text()


@pytest.mark.parametrize("loading", [0, 3], ids=["serving", "loading: no end of the pod either"])
async def test_an_agent_that_ends_alone_leaves_the_spool_to_the_next(
    loading: int, uploading: tuple[Uploader, FolderObjects, Path], caplog: pytest.LogCaptureFixture
) -> None:
    uploader, objects, spool = uploading
    caplog.set_level(logging.INFO)
    objects.down = True
    shard(spool, 0)
    loads = iter([False] * loading)
    await uploader.finish(600, settle=2.0, serving=lambda: next(loads, True), ending=lambda: False)
    assert uploader.counters.dropped == 0
    assert "1 shards wait in the spool for the next agent" in caplog.text


async def test_an_engine_that_died_without_a_word_ends_the_pod_after_a_while(
    uploading: tuple[Uploader, FolderObjects, Path],
) -> None:
    uploader, _, spool = uploading
    shard(spool, 0)
    await uploader.finish(600, settle=0.1, serving=lambda: False, ending=lambda: False)
    assert list(spool.iterdir()) == []


async def test_a_launcher_that_is_told_a_moment_later_is_waited_for(
    uploading: tuple[Uploader, FolderObjects, Path],
) -> None:
    uploader, _, spool = uploading
    told = iter([False, False])
    states = iter([True] * 4)
    finishing = uploader.finish(600, settle=0.1, serving=lambda: next(states, False), ending=lambda: next(told, True))
    shard(spool, 0)
    await finishing
    assert list(spool.iterdir()) == []


async def test_the_end_of_a_pod_ends_a_long_wait_for_the_store(
    uploads: tuple[Uploader, FolderObjects, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader, objects, spool = uploads
    monkeypatch.setattr(uploader_module, "FIRST_BACKOFF_S", 3600.0)
    objects.down = True
    shard(spool, 0)
    task = asyncio.create_task(uploader.run())
    await asyncio.sleep(0.2)
    objects.down = False
    await uploader.finish(60, settle=0.1, serving=lambda: False, ending=lambda: True)
    assert uploader.counters.uploaded == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
