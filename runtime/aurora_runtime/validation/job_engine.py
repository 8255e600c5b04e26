"""The engine of a validation Job: starts it, and swaps its draft as the agent of a pod does.

Invariants: active and candidate differ in their weights alone. The baseline NGRAM, where it is asked for, needs an
engine of its own. Every engine that was started is stopped on exit. A dead engine never passes for a slow one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
from aurora_runtime.validation.measured_engine import BatchResult, LoadClient
from aurora_runtime.validation.store_reads import FetchedDraft

MEMORY_SHARE: Final = 0.85
"""Share of a GPU's memory that the engines may use together."""


@dataclass
class JobEngine:
    """Implements :class:`EngineHost` on this machine, within :meth:`running`."""

    spec: EngineSpec
    folder: Path
    """For the engines' logs."""
    drafts: Mapping[Arm, FetchedDraft]
    """The active draft and the candidate."""
    draft_spec: DraftSpec
    with_ngram: bool
    machine: Machine
    deadline: float
    """When an engine must be ready, on :func:`time.monotonic`, in seconds."""
    _session: aiohttp.ClientSession = field(init=False)
    _engine: EngineProcess = field(init=False)
    _ngram: EngineProcess = field(init=False)
    _draft_swap: DraftSwap = field(init=False)
    _loaded: Arm = field(default=Arm.ACTIVE, init=False)

    def __post_init__(self) -> None:
        self._engine, self._ngram = (EngineProcess(name, self.folder / f"{name}.log") for name in ("draft", "ngram"))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Start the engines, and stop them at the end."""
        async with open_session() as self._session:
            try:
                await self._start()
                yield self
            finally:
                self._stop()

    def _stop(self) -> None:
        """Stop the engines.

        An engine on a GPU gets time to release the device's memory. On a CPU there is nothing to release, and SGLang
        looks only every 5 s whether it is asked to stop.
        """
        for process in (self._engine, self._ngram):
            process.ask_to_stop()
        for process in (self._engine, self._ngram):
            process.stop(0.0 if self.spec.device == "cpu" else STOP_SECONDS)

    async def _start(self) -> None:
        """Start the engines in turn: on a GPU each takes its part of the memory that the earlier ones left free."""
        active = self.drafts[Arm.ACTIVE]
        controller = controller_of(self.draft_spec, self.folder, "measurement")
        eagle = Eagle3(active.folder, active.version, self.draft_spec, controller)
        self._engine.start(self.spec, eagle, memory_share=MEMORY_SHARE / 2 if self.with_ngram else MEMORY_SHARE)
        await asyncio.to_thread(self._engine.wait_ready, self.deadline)
        self._draft_swap = DraftSwap(SGLangClient(self._session, self._engine.url))
        if self.with_ngram:
            self._ngram.start(self.spec, Ngram(NGRAM_TOKENS), memory_share=MEMORY_SHARE)
            await asyncio.to_thread(self._ngram.wait_ready, self.deadline)

    async def hold(self, arm: Arm) -> bool:
        """Swap to the draft of ``arm`` where it has one, and empty the prefix cache. Returns whether it swapped."""
        swaps = arm in self.drafts and arm is not self._loaded
        if swaps:
            await self._draft_swap.load(self.drafts[arm])
            self._loaded = arm
        await SGLangClient(self._session, self._running(arm).url).flush_prefix_cache()
        return swaps

    def _running(self, arm: Arm) -> EngineProcess:
        """The engine that runs ``arm``. Raises :class:`MeasurementError` when it died."""
        process = self._ngram if arm is Arm.NGRAM else self._engine
        if not process.is_alive():
            raise MeasurementError(f"engine {process.name} died; the end of its log:\n{process.log_tail()}")
        return process

    async def confirm(self, arm: Arm, _result: BatchResult) -> None:
        """Raise :class:`MeasurementError` when the engine of ``arm`` died."""
        self._running(arm)

    def client(self, arm: Arm, wish: Mapping[str, Any]) -> LoadClient:
        """A client of the engine of ``arm``. Raises :class:`MeasurementError` when that died."""
        return LoadClient(self._session, self._running(arm).url, wish=wish)
