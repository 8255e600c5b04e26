"""What one pod serves, observed: the engine's word, the launcher's, capture's counters, the swap's status.

Invariant: version and checksum are the engine's answers; the version is asked for every time, the checksum, which costs
the engine a pass over the draft, once per boot and swap.
"""

from __future__ import annotations

import logging
from typing import Final

from aurora_protocol.agent_api import AgentState, CaptureCounters, LiveCounters
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import DraftRefused, EngineFault
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.agent.measurement import MeasurementLease
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import CaptureState, PodFolder

log = logging.getLogger(__name__)

NO_BOOT: Final = ""


class Pod:
    """Observations of one inference pod."""

    def __init__(
        self,
        name: str,
        folder: PodFolder,
        engine: SGLangClient,
        drafts: DraftCache,
        swapper: Swapper,
        uploader: Uploader,
        measuring: MeasurementLease,
        *,
        draft_tokens: int,
    ) -> None:
        self._name = name
        self._folder = folder
        self._engine = engine
        self._drafts = drafts
        self._swapper = swapper
        self._uploader = uploader
        self._measuring = measuring
        self._draft_tokens = draft_tokens

    def boot(self) -> str:
        """The boot that the launcher declared ready, or nothing."""
        state = self._folder.engine_state()
        return state.boot if state is not None and state.ready else NO_BOOT

    async def ready(self) -> bool:
        """Whether the pod takes requests: its engine is up, captures, and is not half way through a dead agent's swap.

        A pause of our own does not count: requests wait inside the engine for less than a second. A withdrawn pod is
        not ready, whatever its engine holds.
        """
        boot = self.boot()
        if boot == NO_BOOT or self._measuring.withdrawn:
            return False
        try:
            await self._swapper.take_over(boot)
        except EngineFault as error:
            log.warning("the engine cannot be taken over yet: %s", error)
            return False
        ready = self._swapper.pausing or await self._engine.ready() or self._swapper.pausing
        return ready and not self._measuring.withdrawn

    def capture(self) -> CaptureState | None:
        try:
            return CaptureState.from_json(self._folder.capture.read_bytes())
        except FileNotFoundError:
            return None

    def capture_counters(self) -> CaptureCounters:
        uploads, state = self._uploader.counters, self.capture()
        if state is None:
            return CaptureCounters(shards_uploaded=uploads.uploaded, shards_dropped=uploads.dropped)
        return CaptureCounters(
            captured_records=state.captured_records,
            dropped_records=state.dropped_records + state.errors,
            shards_uploaded=uploads.uploaded,
            shards_dropped=uploads.dropped + state.shards_dropped,
            answer_tokens=state.answer_tokens,
        )

    async def state(self) -> AgentState:
        ready = await self.ready()
        measurement = self._measuring.status()
        version: int | None = None
        checksum: str | None = None
        live = LiveCounters()
        boot = self.boot() if measurement is None else NO_BOOT  # what it holds then, it serves nobody
        if boot != NO_BOOT:
            try:
                version = await self._engine.version()
                live = await self._engine.counters(self._draft_tokens)
                checksum = None if self._swapper.busy else await self._swapper.checksum(version)
            except EngineFault as error:
                log.warning("the engine does not answer: %s", error)
                ready = False
        try:
            lineage: int | None = self._drafts.lineage().number
        except DraftRefused:
            lineage = None
        return AgentState(
            pod=self._name,
            boot=boot,
            engine_ready=ready,
            lineage=lineage,
            version=version,
            checksum=checksum,
            swap=self._swapper.status,
            live=live,
            capture=self.capture_counters(),
            measurement=measurement,
        )
