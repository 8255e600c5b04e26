"""One pod for the agent's tests: a fake engine, a store in a folder, and the parts of an agent."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from aurora_protocol.agent_api import (
    AgentState,
    Machine,
    MeasurementPhase,
    MeasurementRequest,
    SwapRequest,
    TrialRequest,
)
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.agent.http_api import application
from aurora_runtime.serving.agent.lending import DRAIN_SECONDS, MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_observer import PodObserver
from aurora_runtime.serving.agent.swapper import PodContext, Swapper
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import EngineState, PodFolder, write_atomically
from aurora_store.deadline import is_interrupted
from aurora_store.errors import StoreInterrupted
from tests.unit.fakes import FakeEngine, FolderObjects, draft_tensors, lineage, publish_bytes, safetensors

TOKEN = "the-agent-token"  # noqa: S105 - a test's
AUTH = {"Authorization": f"Bearer {TOKEN}"}
JOB = "chat-validate-v1-1"


class Rig:
    """A fake engine that serves version 0, and versions 1 and 2 in the store."""

    def __init__(self, tmp_path: Path) -> None:
        self.engine = FakeEngine()
        self.folder = PodFolder(tmp_path / "state")
        self.folder.drafts.mkdir(parents=True)
        write_atomically(self.folder.lineage, lineage().to_json())
        self.objects = FolderObjects(tmp_path / "store")
        self.objects.path.mkdir()
        self.registry = PodRegistry(self.objects)
        self.digests = [
            publish_bytes(self.registry, tmp_path / "sources", v, safetensors(draft_tensors(v + 1.0))).digest
            for v in range(3)
        ]
        self.drafts = DraftCache(self.folder, self.registry)
        first = self.drafts.stage(0, self.digests[0])
        self.drafts.make_current(first)
        self.engine.weights = first.weights.read_bytes()
        self.results: list[tuple[str, float | None]] = []
        self.metrics = Metrics()
        self.swapper: Swapper
        self.client: SGLangClient

    def context(self) -> PodContext:
        return PodContext("pod-0", self.folder, self.client, self.drafts)

    def new_swapper(self) -> Swapper:
        return Swapper(self.context(), on_finished=self._note_result)

    def _note_result(self, result: str, pause: float | None) -> None:
        self.results.append((result, pause))
        self.metrics.record_swap(result, pause)

    def swap_request(self, version: int, epoch: int) -> SwapRequest:
        return SwapRequest(version=version, digest=self.digests[version], epoch=epoch)

    def report_engine(self, boot: str = "b1", *, ready: bool = True, held_version: int | None = None) -> None:
        """Report an engine start, as the launcher does."""
        machine = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")
        state = EngineState(
            boot=boot, ready=ready, started_at=datetime.now(UTC), machine=machine, held_version=held_version
        )
        write_atomically(self.folder.engine, state.to_json())

    async def swap(self, version: int, epoch: int = 2) -> None:
        await self.swapper.request(self.swap_request(version, epoch))
        await self.swapper.wait()

    def serves(self, version: int) -> bool:
        """Whether the engine generates with exactly this version, and a restart would start with it."""
        expected = safetensors(draft_tensors(version + 1.0))
        holds = expected == self.engine.weights and self.engine.version == str(version)
        current = self.drafts.current()
        generates = not (self.engine.paused or self.engine.updating or self.engine.unpaused_updates)
        return holds and generates and current is not None and current.version == version


class PodRig(Rig):
    """A pod whose agent can die. This class also plays the launcher: it starts the engine when a test asks for it."""

    lease: MeasurementLease
    pod: PodObserver
    uploader: Uploader
    http: TestClient  # type: ignore[type-arg]
    mounted_token = TOKEN
    now = 0.0

    def start_engine(self, boot: str) -> None:
        """Start the engine as the launcher does: with ``current``, and without a withdrawal."""
        self.folder.withdrawal.unlink(missing_ok=True)
        current = self.drafts.current()
        assert current is not None
        self.engine.start(current.weights.read_bytes(), str(current.version))
        self.report_engine(boot)

    def start_agent(self) -> None:
        self.swapper = self.new_swapper()
        pod = self.context()
        self.lease = MeasurementLease(pod, self.swapper, read_token=lambda: self.mounted_token, clock=lambda: self.now)
        self.uploader = Uploader(self.folder.spool, self.registry)
        self.pod = PodObserver(pod, self.swapper, self.uploader, self.lease)

    def application(self) -> web.Application:
        """The HTTP API of the agent that runs now."""
        return application(self.pod, self.swapper, self.lease, self.metrics, lambda: self.mounted_token)

    async def state(self) -> AgentState:
        """The answer of the HTTP API."""
        answer = await self.http.get("/v1/state", headers=AUTH)
        return AgentState.from_json(await answer.read())

    async def metrics_text(self) -> str:
        return await (await self.http.get("/metrics")).text()

    async def request_lease(
        self, lease_seconds: int = 60, *, begin: bool = False, measurement: str = JOB, epoch: int = 2
    ) -> None:
        await self.lease.request(
            MeasurementRequest(measurement=measurement, epoch=epoch, lease_seconds=lease_seconds, begin=begin)
        )

    async def trial(self, version: int, measurement: str = JOB) -> bool:
        digest = self.digests[version]
        return await self.lease.request_trial(TrialRequest(measurement=measurement, version=version, digest=digest))

    async def drain(self) -> None:
        await self.lease.advance()
        self.now += DRAIN_SECONDS + 1
        await self.lease.advance()

    async def withdraw(self) -> None:
        await self.request_lease(begin=True)
        await self.drain()
        assert self.phase() is MeasurementPhase.MEASURING

    def phase(self) -> MeasurementPhase | None:
        status = self.lease.status()
        return status.phase if status else None

    def is_restart_ordered(self) -> bool:
        state, withdrawal = self.folder.read_engine_state(), self.folder.read_withdrawal()
        return state is not None and withdrawal is not None and withdrawal.restart and withdrawal.boot == state.boot

    async def return_to_service(self) -> None:
        """Advance until the pod has returned; the launcher starts the engine again when the agent orders it."""
        for number in range(10):
            if not self.lease.withdrawn:
                return
            if self.is_restart_ordered():
                self.start_engine(f"returned-{number}")
            try:
                await self.lease.advance()
            except EngineFault:
                continue
        raise AssertionError("the pod did not return")


class SlowStore:
    """Holds each download of weights until it is given up or released. ``deaf`` downloads go on to their end."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch, *, deaf: bool = False) -> None:
        self.began, self.released = threading.Event(), threading.Event()
        download = rig.objects.download

        def slowly(key: str, path: Path, sha256: str, *, max_bytes: int) -> None:
            self.began.set()
            while not self.released.wait(0.01):
                if is_interrupted() and not deaf:
                    raise StoreInterrupted(f"download {key}")
            download(key, path, sha256, max_bytes=max_bytes)

        monkeypatch.setattr(rig.objects, "download", slowly)

    async def wait_until_begun(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 10)


class BusyDisk:
    """Holds each sync of a file until the disk is released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.released = threading.Event(), threading.Event()
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, _: int) -> None:
        self.began.set()
        self.released.wait(10)

    async def wait_until_begun(self) -> None:
        assert await asyncio.to_thread(self.began.wait, 10)
