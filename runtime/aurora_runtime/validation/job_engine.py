"""The engine of a validation Job: starts it, and swaps its draft as the agent of a pod does.

Invariants: active and candidate differ in their weights alone. The baseline NGRAM, where it is asked for, needs an
engine of its own. :meth:`EngineSet.close` stops every engine that was started. A caller that measures calls
:meth:`EngineSet.check` after each batch, so that a dead engine does not pass for a slow one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.agent_api import Machine
from aurora_protocol.evidence_records import Arm
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.server_process import STOP_SECONDS, EngineProcess, EngineSpec
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import NGRAM_TOKENS, Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.load_client import REQUEST_SECONDS, BatchResult, LoadClient
from aurora_runtime.validation.store_reads import FetchedDraft

MEMORY_SHARE: Final = 0.85
"""Share of a GPU's memory that all engines may use together."""
_DRAFT_ENGINE: Final = "draft"
_NO_WISH: Final[Mapping[str, Any]] = {}


@dataclass
class EngineSet:
    """Engine processes by name, and the connections to them. Each writes its log to ``folder``."""

    spec: EngineSpec
    folder: Path
    request_seconds: float = REQUEST_SECONDS
    """Time limit of one request for an answer."""
    _processes: dict[str, EngineProcess] = field(default_factory=dict, init=False)
    _session: aiohttp.ClientSession | None = field(default=None, init=False)

    def start(self, name: str, speculation: Eagle3 | Ngram | None, *, memory_share: float = MEMORY_SHARE) -> None:
        """Start an engine without waiting. ``memory_share`` is the share of the free GPU memory that it may use."""
        process = self._processes[name] = EngineProcess(name, self.folder / f"{name}.log")
        process.start(self.spec, speculation, memory_share=memory_share)

    async def wait_ready(self, name: str, deadline: float) -> None:
        """Wait until the engine is ready, at most until ``deadline`` (:func:`time.monotonic`, in seconds).

        Raises :class:`EngineFault` when the engine does not start.
        """
        await asyncio.to_thread(self._processes[name].wait_ready, deadline)

    async def close(self) -> None:
        """Stop every engine. Safe to call twice.

        An engine on a GPU gets time to release the device's memory. On a CPU there is nothing to release, and SGLang
        looks only every 5 s whether it is asked to stop.
        """
        if self._session is not None:
            await self._session.close()
            self._session = None
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.stop(0.0 if self.spec.device == "cpu" else STOP_SECONDS)
        self._processes.clear()

    def check(self, name: str) -> None:
        """Raise :class:`MeasurementError` when the engine died or was never started."""
        process = self._processes.get(name)
        if process is None:
            raise MeasurementError(f"engine {name} is not running")
        if not process.is_alive():
            raise MeasurementError(f"engine {name} died; the end of its log:\n{process.log_tail()}")

    def url(self, name: str) -> str:
        """The engine's address. Raises as :meth:`check` does."""
        self.check(name)
        return self._processes[name].url

    def admin(self, name: str) -> SGLangClient:
        """A client to swap drafts, read checksums and empty the prefix cache. Raises as :meth:`check` does."""
        url = self.url(name)
        return SGLangClient(self._open_session(), url)

    def client(self, name: str, wish: Mapping[str, Any] = _NO_WISH, deadline: float | None = None) -> LoadClient:
        """A client for answers, whose batches end at ``deadline`` (:func:`time.monotonic`, in seconds).

        Raises as :meth:`check` does.
        """
        url = self.url(name)
        return LoadClient(self._open_session(), url, self.request_seconds, deadline=deadline, wish=wish)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session()
        return self._session


@dataclass
class JobEngine:
    """Implements :class:`EngineHost` on this machine. An async context manager."""

    engines: EngineSet
    drafts: dict[Arm, FetchedDraft]
    """The active draft and the candidate."""
    draft_spec: DraftSpec
    with_ngram: bool
    machine: Machine
    deadline: float
    """When an engine must be ready, on :func:`time.monotonic`, in seconds."""
    _loaded: Arm = field(default=Arm.ACTIVE, init=False)
    _draft_swap: DraftSwap | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            await self._verify_drafts()
        except BaseException:
            await self.engines.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.engines.close()

    async def _start(self) -> None:
        """Start the engines, on a GPU in turn: each takes its part of the memory that the earlier ones left free."""
        active = self.drafts[Arm.ACTIVE]
        controller = controller_of(self.draft_spec, self.engines.folder, "measurement")
        draft_share = MEMORY_SHARE / 2 if self.with_ngram else MEMORY_SHARE
        eagle = Eagle3(active.folder, active.version, self.draft_spec, controller)
        self.engines.start(_DRAFT_ENGINE, eagle, memory_share=draft_share)
        if self.with_ngram and self.engines.spec.device != "cpu":
            await self.engines.wait_ready(_DRAFT_ENGINE, self.deadline)
        if self.with_ngram:
            self.engines.start(Arm.NGRAM, Ngram(NGRAM_TOKENS))
            await self.engines.wait_ready(Arm.NGRAM, self.deadline)
        await self.engines.wait_ready(_DRAFT_ENGINE, self.deadline)

    async def _verify_drafts(self) -> None:
        """Load the candidate and the active draft once: proves that both load, and learns their checksums."""
        swap = self._draft_swap = DraftSwap(self.engines.admin(_DRAFT_ENGINE))
        await swap.remember_checksum(self.drafts[Arm.ACTIVE])
        for arm in (Arm.CANDIDATE, Arm.ACTIVE):
            await swap.load(self.drafts[arm])
        self._loaded = Arm.ACTIVE

    async def hold(self, arm: Arm) -> bool:
        """Swap to the draft of ``arm`` where it has one, and empty the prefix cache. Returns whether it swapped."""
        swaps = arm in self.drafts and arm is not self._loaded
        if swaps:
            if self._draft_swap is None:
                raise MeasurementError("the engines were not started: enter the context first")
            await self._draft_swap.load(self.drafts[arm])
            self._loaded = arm
        await self.engines.admin(_engine_of(arm)).flush_prefix_cache()
        return swaps

    async def confirm(self, arm: Arm, _result: BatchResult) -> None:
        """Raise :class:`MeasurementError` when the engine of ``arm`` died."""
        self.engines.check(_engine_of(arm))

    async def confirm_end(self) -> None:
        """Nothing can be lost after the last batch."""

    def client(self, arm: Arm, wish: Mapping[str, Any], deadline: float) -> LoadClient:
        """A client of the engine of ``arm``. Raises :class:`MeasurementError` when that died."""
        return self.engines.client(_engine_of(arm), wish, deadline)


def _engine_of(arm: Arm) -> str:
    """The name of the engine that runs ``arm``."""
    return arm.value if arm is Arm.NGRAM else _DRAFT_ENGINE
