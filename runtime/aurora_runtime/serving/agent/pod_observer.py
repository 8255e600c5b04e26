"""Observes what one pod serves: from the engine, the launcher, the plugins and the swapper.

Invariant: version and checksum are answers of the engine. The observer asks for the version every time. It asks for the
checksum only once per engine start and swap, because the checksum costs the engine a pass over the draft.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from aurora_protocol.agent_api import (
    AgentState,
    CaptureCounters,
    LiveCounters,
    TraceBudget,
)
from aurora_runtime.engine.speculation_settings import PLACEHOLDER_VERSION
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving.agent.lending import MeasurementLease
from aurora_runtime.serving.agent.metrics import CaptureFigures
from aurora_runtime.serving.agent.swapper import PodContext, Swapper
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import SpeculationState, write_atomically
from aurora_runtime.store_thread import finish_in_thread

log = logging.getLogger(__name__)

NO_BOOT: Final = ""
RECOVERY_POLL_SECONDS: Final = 2.0
CRASHED: Final = "the engine crashed twice within ten minutes with this draft"


class PodObserver:
    """Observations of one inference pod."""

    def __init__(self, pod: PodContext, swapper: Swapper, uploader: Uploader, lease: MeasurementLease) -> None:
        self._pod = pod
        self._swapper = swapper
        self._uploader = uploader
        self._lease = lease

    async def run(self) -> None:
        """Until cancelled: recover each start of the engine, which may be paused by an agent that died."""
        while True:
            with contextlib.suppress(OSError):  # a disk that is busy: read again
                await self.recover()
            await asyncio.sleep(RECOVERY_POLL_SECONDS)

    async def recover(self) -> bool:
        """Once per engine start, close an update that a dead agent left open (:meth:`Swapper.recover`).

        Returns whether the engine is up and its draft is known. A withdrawn pod is left alone, and the answer is False.
        """
        boot = self._pod.folder.ready_boot()
        if boot == NO_BOOT or self._lease.withdrawn:
            return False
        try:
            await self._swapper.recover(boot)
        except EngineFault as error:
            log.warning("the engine's draft is not known yet: %s", error)
            return False
        return True

    async def ready(self) -> bool:
        """Whether the engine takes requests of clients, as far as the agent knows. The pod's probe asks the engine.

        The engine must be up and capture traces, and no update of a dead agent may be open. A pause by this agent's own
        swap does not count, because requests wait inside the engine for less than a second. A withdrawn pod is not
        ready, whichever draft its engine holds.
        """
        if not await self.recover():
            return False
        draft_swap = self._swapper.draft_swap
        ready = draft_swap.paused or await self._pod.engine.is_ready() or draft_swap.paused
        return ready and not self._lease.withdrawn

    async def limit_traces(self, budget: TraceBudget) -> None:
        """Leave ``budget`` for the capture plugin, which reads it within a second."""
        path = self._pod.folder.trace_budget
        await finish_in_thread(lambda: write_atomically(path, budget.to_json(), durable=True))

    def capture_counters(self) -> CaptureCounters:
        """Counters of the capture plugin and of the uploader. A hook error counts as a dropped record."""
        uploads, state = self._uploader.counters, self._pod.folder.read_capture_state()
        if state is None:
            return CaptureCounters(shards_uploaded=uploads.uploaded, shards_dropped=uploads.dropped)
        return CaptureCounters(
            captured_records=state.captured_records,
            dropped_records=state.dropped_records + state.hook_errors,
            shards_uploaded=uploads.uploaded,
            shards_dropped=uploads.dropped + state.shards_dropped,
            answer_tokens=state.traced_answer_tokens,
        )

    def capture_figures(self) -> CaptureFigures:
        """Losses by reason, uploads and the spool. The plugin and the uploader have reasons of their own."""
        uploads, state = self._uploader.counters, self._pod.folder.read_capture_state()
        return CaptureFigures(
            losses={**(state.losses if state else {}), **uploads.losses},
            uploaded_bytes=uploads.uploaded_bytes,
            failed_uploads=uploads.failures,
            spool=self._uploader.spool_state(),
        )

    def speculation(self, boot: str) -> SpeculationState | None:
        """The counters of the speculation controller of the engine start ``boot``. None where no controller decides.

        A withdrawn pod has no ``boot``, because its rounds serve nobody.

        The age of the report does not matter: an idle engine has nothing to add.
        """
        state = self._pod.folder.read_speculation_state()
        return state if state is not None and state.ok and state.boot == boot else None

    async def state(self) -> AgentState:
        """The pod's state for the agent API. Not ready, and without a version, when the engine does not answer."""
        ready = await self.ready()
        measurement = self._lease.status()
        version: int | None = None
        checksum: str | None = None
        live = LiveCounters()
        requests_now: int | None = None
        speculation: SpeculationState | None = None
        speculation_off = ""
        boot = (
            self._pod.folder.ready_boot() if measurement is None else NO_BOOT
        )  # a withdrawn pod serves nobody, whatever it holds
        if boot != NO_BOOT:
            try:
                held = await self._pod.engine.draft_version()
                version = None if held == PLACEHOLDER_VERSION else held
                engine = self._pod.folder.read_engine_state()
                speculation_off = CRASHED if engine is not None and engine.held_version == held else ""
                requests_now = (await self._pod.engine.traffic()).now
                capture = self._pod.folder.read_capture_state()
                live = capture.live if capture is not None and capture.boot == boot else live
                speculation = self.speculation(boot)
                if version is not None and not self._swapper.is_swapping:
                    checksum = await self._swapper.draft_swap.checksum(version)
            except EngineFault as error:
                log.warning("the engine does not answer: %s", error)
                ready = False
        return AgentState(
            pod=self._pod.name,
            boot=boot,
            engine_ready=ready,
            version=version,
            checksum=checksum,
            swap=self._swapper.status,
            live=live,
            requests_now=requests_now,
            capture=self.capture_counters(),
            measurement=measurement,
            trace_budget=self._pod.folder.read_trace_budget() or TraceBudget(tokens_per_minute=0),
            upload_error=self._uploader.error,
            speculation_off=speculation_off,
            speedup_estimate=None if speculation is None else speculation.speedup_over_off,
            saved_time=None if speculation is None else speculation.saved_time,
        )
