"""The engines under measurement: one with the draft, and without a baseline one without speculation and NGRAM's.

Invariants: all are built from one spec and differ in speculation alone; active and candidate share one engine, whose
draft is swapped in place as the agent does it, so that they differ in their weights alone; whatever was started is
stopped on exit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from aurora_api import speculator
from aurora_api.records import Arm
from aurora_runtime.engine.admin import EngineAdmin
from aurora_runtime.engine.process import EngineProcess, EngineSpec
from aurora_runtime.engine.speculation import Eagle3, Ngram
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.drafts import Draft
from aurora_runtime.validation.load import BatchResult, Client

log = logging.getLogger(__name__)

WARM_TOKENS = 24
GPU_SHARE = 0.85


@dataclass
class Engines:
    """Implements :class:`aurora_runtime.validation.measure.Bench` on real servers. An async context manager."""

    spec: EngineSpec
    drafts: dict[Arm, Draft]  # ACTIVE and CANDIDATE
    draft_spec: speculator.Draft
    apart: tuple[Arm, ...]
    """Of OFF and NGRAM those to start an engine for."""
    warm_prompt: tuple[int, ...]
    max_new_tokens: int
    folder: Path
    deadline: float
    request_timeout: float = 300.0
    _processes: dict[str, EngineProcess] = field(default_factory=dict)
    _session: aiohttp.ClientSession | None = None
    _checksums: dict[Arm, str] = field(default_factory=dict)
    _loaded: Arm = Arm.ACTIVE
    _warm: set[Arm] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            await self._verify_drafts()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(self) -> None:
        active = self.drafts[Arm.ACTIVE]
        speculation: dict[str, Eagle3 | Ngram | None] = {
            "off": None,
            "draft": Eagle3(active.folder, active.version, self.draft_spec),
            "ngram": Ngram(self.draft_spec.draft_tokens),
        }
        for arm in {Arm.OFF, Arm.NGRAM} - set(self.apart):
            del speculation[arm.value]
        together = self.spec.device == "cpu"
        for started, (name, kind) in enumerate(speculation.items()):
            process = EngineProcess(name, self.folder / f"{name}.log")
            self._processes[name] = process
            # Each takes its part of what the earlier ones left free; hence one after the other on a GPU.
            process.start(self.spec, kind, memory_share=GPU_SHARE / (len(speculation) - started))
            if not together:
                await asyncio.to_thread(process.wait_ready, self.deadline)
        if together:
            for process in list(self._processes.values()):
                await asyncio.to_thread(process.wait_ready, self.deadline)

    async def close(self) -> None:
        """Stop every server; safe to call twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.stop()
        self._processes.clear()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineFault("the engines are not running")
        return self._session

    def _process(self, arm: Arm) -> EngineProcess:
        name = {Arm.OFF: "off", Arm.NGRAM: "ngram"}.get(arm, "draft")
        process = self._processes[name]
        if not process.alive():
            raise MeasurementError(f"engine {name} died; the end of its log:\n{process.tail()}")
        return process

    def _admin(self, arm: Arm) -> EngineAdmin:
        return EngineAdmin(self._http(), self._process(arm).url)

    def _client(self, arm: Arm) -> Client:
        return Client(self._http(), self._process(arm).url, self.request_timeout)

    async def _verify_drafts(self) -> None:
        """Swap to the candidate and back: proves that both load, and what their checksums are."""
        booted = await self._admin(Arm.ACTIVE).checksum()
        for arm in (Arm.CANDIDATE, Arm.ACTIVE):
            self._checksums[arm] = await self._swap(arm)
        if self._checksums[Arm.ACTIVE] != booted:
            raise MeasurementError("the active draft's checksum differs after a swap away and back")
        if (self._checksums[Arm.CANDIDATE] == booted) != self._same_weights():
            raise MeasurementError("the engine did not load the candidate: its checksum is the active draft's")
        self._loaded = Arm.ACTIVE

    async def _swap(self, arm: Arm) -> str:
        """Load an arm's draft; the engine's checksum of what it holds then."""
        draft, admin = self.drafts[arm], self._admin(arm)
        await admin.swap(draft.weights, draft.version)
        return await admin.checksum()

    def _same_weights(self) -> bool:
        one, other = (self.drafts[arm].weights.read_bytes() for arm in (Arm.ACTIVE, Arm.CANDIDATE))
        return one == other

    async def ready(self, arm: Arm) -> None:
        """Swap when needed, answer one discarded prompt, empty the prefix cache."""
        if arm in self.drafts and arm is not self._loaded:
            if await self._swap(arm) != self._checksums[arm]:
                version = self.drafts[arm].version
                raise MeasurementError(f"the engine's checksum after a swap to version {version} is wrong")
            self._loaded = arm
            self._warm.discard(Arm.ACTIVE)
            self._warm.discard(Arm.CANDIDATE)
        if arm not in self._warm:
            if await self._client(arm).answer(self.warm_prompt, WARM_TOKENS) is None:
                self._process(arm)
                raise EngineFault(f"the warm-up request failed on {arm}")
            self._warm.add(arm)
        await self._admin(arm).flush()

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        result = await self._client(arm).batch(prompts, concurrency, self.max_new_tokens)
        self._process(arm)  # an engine that died is no verdict about its draft's speed
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        return await self._client(Arm.OFF if Arm.OFF in self.apart else Arm.ACTIVE).margin(prefix, one, other)
