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
from aurora_runtime.serving.agent.pod_state import PodObserver
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import write_atomically
from aurora_runtime.serving.pod_records import CaptureState, EngineState
from aurora_store import Registry
from tests.unit.fakes import KEY, FolderObjects
from tests.unit.serving.agent.test_swapper import Rig

TOKEN = "the-agent-token"  # noqa: S105 - a test's
AUTH = {"Authorization": f"Bearer {TOKEN}"}


class AgentRig(Rig):
    client: SGLangClient
    http: TestClient  # type: ignore[type-arg]
    metrics: Metrics
    lease: MeasurementLease
    uploader: Uploader

    def engine_is(self, *, ready: bool, boot: str = "b1") -> None:
        state = EngineState(boot=boot, ready=ready, started_at=datetime.now(UTC))
        write_atomically(self.folder.engine, state.to_json())

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
        pod = rig.context()
        rig.swapper = Swapper(pod, on_finished=rig.metrics.record_swap)
        rig.uploader = Uploader(rig.folder.spool, rig.registry)
        rig.lease = MeasurementLease(pod, rig.swapper, token=TOKEN)
        observer = PodObserver(pod, rig.swapper, rig.uploader, rig.lease)
        app = application(observer, rig.swapper, rig.lease, rig.metrics, TOKEN)
        rig.http = await stack.enter_async_context(TestClient(TestServer(app)))
        yield rig


async def test_only_probes_and_metrics_are_open(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await rig.http.get(path)).status == 200
    swap = rig.swap_request(1, 2).to_json()
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {KEY}"},
    ):
        assert (await rig.http.get("/v1/state", headers=headers)).status == 401
        assert (await rig.http.put("/v1/draft", data=swap, headers=headers)).status == 401
    assert rig.serves(0)
    assert rig.engine.calls.count("pause_generation") == 0


async def test_a_swap_is_requested_and_reported_over_http(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    answer = await rig.http.put("/v1/draft", data=rig.swap_request(1, 2).to_json(), headers=AUTH)
    assert answer.status == 202
    await rig.swapper.wait()
    state = await rig.state()
    assert (state.version, state.pod, state.boot, state.engine_ready, state.lineage) == (1, "pod-0", "b1", True, 1)
    assert state.checksum == await rig.client.draft_checksum()
    assert (await rig.http.put("/v1/draft", data=rig.swap_request(0, 1).to_json(), headers=AUTH)).status == 409
    assert (await rig.http.put("/v1/draft", data=b'{"version": 1}', headers=AUTH)).status == 400
    text = await (await rig.http.get("/metrics")).text()
    assert "aurora_agent_draft_version 1.0" in text
    assert 'aurora_agent_swaps_total{result="success"} 1.0' in text
    assert "aurora_agent_swap_pause_seconds_count 1.0" in text
    assert "aurora_agent_requests_total 2.0" in text
    assert KEY not in text
    assert TOKEN not in text


async def test_the_pod_is_ready_only_when_the_launcher_says_so(rig: AgentRig) -> None:
    assert (await rig.http.get("/readyz")).status == 503
    rig.engine_is(ready=False)
    assert (await rig.http.get("/readyz")).status == 503
    assert (await rig.http.put("/v1/draft", data=rig.swap_request(1, 2).to_json(), headers=AUTH)).status == 503
    rig.engine_is(ready=True)
    assert (await rig.http.get("/readyz")).status == 200
    rig.engine.paused = True
    assert (await rig.http.get("/readyz")).status == 503, "a pause that is not ours"
    rig.swapper.draft_swap.paused = True
    assert (await rig.http.get("/readyz")).status == 200, "our own pause is too short to leave the Service"


async def test_a_new_start_of_the_engine_is_recovered(rig: AgentRig) -> None:
    rig.engine_is(ready=True)
    first = await rig.state()
    rig.engine.weights = b"another engine"
    rig.engine.paused = True
    rig.engine_is(ready=True, boot="b2")
    second = await rig.state()
    assert second.boot == "b2"
    assert second.checksum != first.checksum, "a checksum is not remembered across engines"
    assert not rig.engine.paused


async def test_the_engine_computes_its_checksum_once(rig: AgentRig) -> None:
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
        boot="b1",
        ok=True,
        captured_records=9,
        dropped_records=2,
        hook_errors=1,
        traced_answer_tokens=7,
        shards_dropped=4,
        updated_at=datetime.now(UTC),
    )
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
    write_atomically(stem.with_suffix(".json"), manifest.to_json())  # as the writer does: the uploader may be looking
    return stem.with_suffix(".safetensors")


@pytest.fixture
def uploads(tmp_path: Path) -> tuple[Uploader, FolderObjects, Path]:
    objects = FolderObjects(tmp_path / "store")
    objects.path.mkdir()
    return Uploader(tmp_path / "spool", Registry(objects)), objects, tmp_path / "spool"


def test_shards_leave_the_spool_once_the_store_has_them(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    uploader.upload_spool()
    for seq in range(3):
        shard(spool, seq)
    uploader.upload_spool()
    registry = Registry(objects)
    keys = list(registry.shard_keys(1))
    assert [registry.shard(key)[0].seq for key in keys] == [0, 1, 2]
    assert list(spool.iterdir()) == []
    assert uploader.counters.uploaded == 3


def test_a_shard_whose_manifest_was_not_stored_is_uploaded_again(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    shard(spool, 0)
    real = objects.create

    def lost(key: str, data: bytes) -> None:
        objects.create = real  # type: ignore[method-assign]
        objects.refuse = 1
        real(key, data)

    objects.create = lost  # type: ignore[method-assign]
    with pytest.raises(Exception, match="refuses"):
        uploader.upload_spool()
    assert list(Registry(objects).shard_keys(1)) == [], "no manifest, no shard"
    uploader.upload_spool()
    assert len(list(Registry(objects).shard_keys(1))) == 1
    assert uploader.counters.uploaded == 1


def test_a_shard_that_differs_from_its_manifest_is_dropped(uploads: tuple[Uploader, FolderObjects, Path]) -> None:
    uploader, objects, spool = uploads
    shard(spool, 0).write_bytes(b"daTa")
    shard(spool, 1).with_suffix(".json").write_bytes(b"{}")
    shard(spool, 2).unlink()
    shard(spool, 3)
    uploader.upload_spool()
    assert [Registry(objects).shard(key)[0].seq for key in Registry(objects).shard_keys(1)] == [3]
    assert (uploader.counters.uploaded, uploader.counters.dropped) == (1, 2), "the third was the writer's to count"
    assert list(spool.iterdir()) == []


async def test_uploads_continue_after_a_store_outage(
    uploads: tuple[Uploader, FolderObjects, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader, objects, spool = uploads
    monkeypatch.setattr("aurora_runtime.serving.agent.uploader.FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr("aurora_runtime.serving.agent.uploader.POLL_SECONDS", 0.01)
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
    monkeypatch.setattr(uploader_module, "POLL_SECONDS", 0.02)
    task = asyncio.create_task(uploads[0].run())
    yield uploads
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_pod_that_stops_uploads_the_last_shards_of_its_engine(
    uploading: tuple[Uploader, FolderObjects, Path],
) -> None:
    uploader, objects, spool = uploading
    engine_runs = True
    shard(spool, 0)
    finishing = asyncio.create_task(
        uploader.finish(
            600, signal_skew_seconds=0.1, engine_is_up=lambda: engine_runs, launcher_is_stopping=lambda: True
        )
    )
    await asyncio.sleep(0.1)
    assert not finishing.done(), "the engine still answers, and traces"
    shard(spool, 1)
    engine_runs = False
    await finishing
    assert len(list(Registry(objects).shard_keys(1))) == 2
    assert list(spool.iterdir()) == []
    assert uploader.counters.dropped == 0


async def test_a_pod_that_stops_waits_for_the_store_no_longer_than_allowed_and_counts_lost_shards(
    uploading: tuple[Uploader, FolderObjects, Path], caplog: pytest.LogCaptureFixture
) -> None:
    uploader, objects, spool = uploading
    objects.down = True
    for seq in range(3):
        shard(spool, seq)
    await uploader.finish(0.2, signal_skew_seconds=0.1, engine_is_up=lambda: False, launcher_is_stopping=lambda: True)
    assert uploader.counters.dropped == 3
    assert "3 shards (12 bytes) are lost with the pod" in caplog.text
    objects.down = False
    uploader.upload_spool()
    assert uploader.counters.uploaded == 0, "what was counted as lost is not uploaded after all"


async def test_lost_shards_are_in_the_metric(rig: AgentRig) -> None:
    rig.objects.down = True
    shard(rig.folder.spool, 0)
    await rig.uploader.finish(0, signal_skew_seconds=0.1, engine_is_up=lambda: False, launcher_is_stopping=lambda: True)
    assert "aurora_agent_dropped_shards_total 1.0" in await (await rig.http.get("/metrics")).text()


@pytest.mark.parametrize("loading", [0, 3], ids=["engine serves", "engine still loads"])
async def test_an_agent_that_stops_alone_leaves_the_spool_to_the_next_agent(
    loading: int, uploading: tuple[Uploader, FolderObjects, Path], caplog: pytest.LogCaptureFixture
) -> None:
    uploader, objects, spool = uploading
    caplog.set_level(logging.INFO)
    objects.down = True
    shard(spool, 0)
    loads = iter([False] * loading)
    await uploader.finish(
        600, signal_skew_seconds=2.0, engine_is_up=lambda: next(loads, True), launcher_is_stopping=lambda: False
    )
    assert uploader.counters.dropped == 0
    assert "1 shards wait in the spool for the next agent" in caplog.text


async def test_an_engine_that_died_silently_counts_as_a_pod_that_stops(
    uploading: tuple[Uploader, FolderObjects, Path],
) -> None:
    uploader, _, spool = uploading
    shard(spool, 0)
    await uploader.finish(600, signal_skew_seconds=0.1, engine_is_up=lambda: False, launcher_is_stopping=lambda: False)
    assert list(spool.iterdir()) == []


async def test_a_launcher_that_is_signalled_a_moment_later_is_waited_for(
    uploading: tuple[Uploader, FolderObjects, Path],
) -> None:
    uploader, _, spool = uploading
    stopping = iter([False, False])
    states = iter([True] * 4)
    finishing = uploader.finish(
        600,
        signal_skew_seconds=0.1,
        engine_is_up=lambda: next(states, False),
        launcher_is_stopping=lambda: next(stopping, True),
    )
    shard(spool, 0)
    await finishing
    assert list(spool.iterdir()) == []


async def test_a_pod_that_stops_ends_a_long_backoff(
    uploads: tuple[Uploader, FolderObjects, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader, objects, spool = uploads
    monkeypatch.setattr(uploader_module, "FIRST_BACKOFF_SECONDS", 3600.0)
    objects.down = True
    shard(spool, 0)
    task = asyncio.create_task(uploader.run())
    await asyncio.sleep(0.2)
    objects.down = False
    await uploader.finish(60, signal_skew_seconds=0.1, engine_is_up=lambda: False, launcher_is_stopping=lambda: True)
    assert uploader.counters.uploaded == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
