"""A pod withdrawn from its Service to measure drafts on its engine, and its certain way back.

::

    serving --order--> draining --endpoints gone, requests ended--> measuring --lease over--> returning --> serving

Invariants (promise 1): a draft is loaded for trial only while ``withdrawal.json`` exists and the engine's guard
answers with its name, and never becomes ``current``; the file goes only when the engine was seen to hold exactly
``current``, by version and by checksum, or was started anew, which is always with ``current``. The lease lives in
memory: an agent that restarts has none, so the pod goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from typing import Final

from aurora_protocol.agent_api import EngineMode, MeasurementPhase, MeasurementRequest, MeasurementStatus, TrialRequest
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.draft_cache import DraftCache, StagedDraft
from aurora_runtime.serving.agent.drain import Drain
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_runtime.serving.pod_files import (
    EngineState,
    ModeOrder,
    PodFolder,
    Withdrawal,
    pass_digest,
    write_atomically,
)
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)

ENTER_S: Final = 0.2
"""From the guard to the scheduler: a request that was let in is seen there within this time."""
POLL_S: Final = 1.0
ATTEMPTS: Final = 3
"""To bring an engine back, which may only be slow to answer, before it is started anew."""


class MeasurementLease:
    """The measurement on one pod. All methods run on one event loop."""

    def __init__(
        self,
        engine: SGLangClient,
        swapper: Swapper,
        drafts: DraftCache,
        folder: PodFolder,
        *,
        draft_tokens: int,
        token: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._swapper, self._drafts, self._folder = engine, swapper, drafts, folder
        self._draft_tokens, self._token = draft_tokens, token
        self._clock = clock
        self._lock = asyncio.Lock()
        self._lease: float | None = None
        self._departure = Drain(clock)
        self._held: tuple[str, str] | None = None  # boot and digest that the engine was seen to hold
        self._sums: dict[tuple[str, str], str] = {}
        self._tried: StagedDraft | None = None  # the other draft of the measurement: arms take turns
        self._failed = 0  # attempts to go back in this engine

    @property
    def withdrawn(self) -> bool:
        return self._folder.withdrawal.exists()

    def status(self) -> MeasurementStatus | None:
        withdrawal, engine = self._folder.withdrawn(), self._folder.engine_state()
        if withdrawal is None:
            return None
        phase = MeasurementPhase.MEASURING if withdrawal.drained else MeasurementPhase.DRAINING
        return MeasurementStatus(
            measurement=withdrawal.measurement,
            phase=phase if self._leased() else MeasurementPhase.RETURNING,
            machine=engine.machine if engine else None,
            boot=engine.boot if engine and engine.ready else "",
        )

    def _leased(self) -> bool:
        return self._lease is not None and self._clock() < self._lease

    async def order(self, request: MeasurementRequest) -> None:
        """Withdraw the pod, renew its lease, or let it go back.

        Raises:
            SwapRefused: an older epoch, another's measurement, a lease that is over, or a swap is going on.
            EngineFault: the engine is not there, or does not hold ``current``.
        """
        last = self._swapper.last_request()
        if last is not None and request.epoch < last.epoch:
            raise SwapRefused(f"epoch {request.epoch} is older than {last.epoch}")
        if request.begin and request.lease_seconds > 0 and not self.withdrawn:
            async with self._lock:
                if not self.withdrawn:
                    await self._withdraw(request)
                    self._lease = self._clock() + request.lease_seconds
                    return
        # Without the lock: a trial may hold it for as long as a draft takes to download, and the lease must not end.
        withdrawal = self._folder.withdrawn()
        mine = withdrawal is not None and withdrawal.measurement == request.measurement
        if request.lease_seconds == 0:
            self._lease = None if mine else self._lease
        elif mine and self._leased():
            self._lease = self._clock() + request.lease_seconds
        else:
            raise SwapRefused(f"the pod is not withdrawn for {request.measurement}, or not any more")

    async def _withdraw(self, request: MeasurementRequest) -> None:
        engine, current = self._running(), self._drafts.current()
        version, checksum = await self._engine.version(), await self._engine.checksum()
        if current is None or version != current.version:
            raise EngineFault(f"the engine holds version {version}, which is not the pod's current draft")
        # From here on without a pause, so that no swap comes between: a Swapper looks for the file before it begins.
        if self._swapper.busy or self._running() != engine or self._drafts.current() != current:
            raise SwapRefused("a swap is going on")
        self._departure, self._held, self._tried = Drain(self._clock), None, None
        self._write(
            Withdrawal(
                measurement=request.measurement,
                boot=engine.boot,
                version=version,
                digest=current.digest,
                checksum=checksum,
                pass_sha256=pass_digest(self._token, request.measurement),
            )
        )
        log.info("withdrawn for %s", request.measurement)

    def _write(self, withdrawal: Withdrawal) -> None:
        write_atomically(self._folder.withdrawal, withdrawal.to_json())

    def _running(self) -> EngineState:
        """The engine, started as ordered and ready; raises :class:`EngineFault`."""
        state = self._folder.engine_state()
        if state is None or not state.ready or state.order != self._folder.ordered().order:
            raise EngineFault("the engine is not up")
        return state

    def _start(self, mode: EngineMode) -> None:
        """Order another start of the engine."""
        write_atomically(self._folder.mode, ModeOrder(mode=mode, order=secrets.token_hex(8)).to_json())
        self._held, self._failed = None, 0

    # trials --------------------------------------------------------------------------------------------------------

    async def trial(self, request: TrialRequest) -> bool:
        """Bring the engine to hold what is asked for, with an empty prefix cache; False: on the way, ask again.

        Raises:
            SwapRefused: the pod is not withdrawn for this measurement.
            RuntimeFault, StoreError: it cannot be done; the way back is not affected.
        """
        async with self._lock:
            withdrawal = self._folder.withdrawn()
            if withdrawal is None or withdrawal.measurement != request.measurement or not self._leased():
                raise SwapRefused(f"the pod is not withdrawn for {request.measurement}, or not any more")
            if not withdrawal.drained:
                return False
            if self._folder.ordered().mode is not request.mode:
                self._start(request.mode)
                return False
            try:
                engine = self._running()
            except EngineFault:
                return False
            if request.version is not None and request.digest is not None:
                await self._try(request.version, request.digest, engine.boot, withdrawal)
                if self._held != (engine.boot, request.digest):
                    return False
            return await self._at_rest()

    async def _at_rest(self) -> bool:
        """Whether no request is under way; the prefix cache is empty then."""
        try:
            await self._engine.flush()
        except EngineFault:
            return False
        return True

    async def _try(self, version: int, digest: str, boot: str, withdrawal: Withdrawal) -> None:
        """Load a draft for trial, unless the engine holds it or has a request under way that is not to see it."""
        if self._held == (boot, digest):
            return
        if boot != withdrawal.boot:
            withdrawal = await self._anchored(withdrawal, boot)
        current = self._current(withdrawal)
        keep = (current,) if self._tried is None else (current, self._tried)
        draft = await asyncio.to_thread(self._drafts.stage, version, digest, keep=keep)
        if digest != current.digest:
            self._tried = draft
        if await self._engine.guarded() != withdrawal.measurement:
            raise EngineFault("the engine's guard is not in place: nothing is loaded for trial")
        if withdrawal.trial_boot != boot:
            self._write(withdrawal.model_copy(update={"trial_boot": boot}))
            await asyncio.sleep(ENTER_S)
        if not await self._at_rest():
            return  # a client's, let in before the guard closed
        if self._running().boot != boot:
            raise EngineFault("the engine was started anew meanwhile: its guard knows nothing of this trial")
        self._held = None
        await self._load(draft, withdrawal, boot)

    async def _anchored(self, withdrawal: Withdrawal, boot: str) -> Withdrawal:
        """The way back in an engine that was started anew: it holds ``current`` still, and this is its checksum."""
        version = await self._engine.version()
        if version != withdrawal.version:
            raise EngineFault(f"the engine started with version {version}, not with {withdrawal.version}")
        anchored = withdrawal.model_copy(update={"boot": boot, "checksum": await self._engine.checksum()})
        self._write(anchored)
        return anchored

    def _current(self, withdrawal: Withdrawal) -> StagedDraft:
        current = self._drafts.current()
        if current is None or current.digest != withdrawal.digest:
            raise EngineFault("the pod's current draft is not the one that it was withdrawn with")
        return current

    async def _load(self, draft: StagedDraft, withdrawal: Withdrawal, boot: str) -> None:
        """Load ``draft`` and see by version and checksum that the engine holds it; raises :class:`EngineFault`."""
        await self._engine.swap(draft.weights, draft.version)
        version, checksum = await self._engine.version(), await self._engine.checksum()
        own = draft.digest == withdrawal.digest
        known = withdrawal.checksum if own else self._sums.get((boot, draft.digest))
        right = checksum == known if known is not None else checksum != withdrawal.checksum
        if version != draft.version or not right:
            raise EngineFault(f"the engine does not hold version {draft.version} after the update")
        self._sums[boot, draft.digest] = checksum
        self._held = (boot, draft.digest)

    # the way on and back --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: see requests end, and bring the pod back when its lease is over."""
        while True:
            if self.withdrawn:
                try:
                    await self.step()
                except (RuntimeFault, StoreError, OSError) as error:
                    log.warning("withdrawn, and the next step has to wait: %s", error)
            await asyncio.sleep(POLL_S)

    async def step(self) -> None:
        """The next step of a withdrawal; raises :class:`EngineFault`, and then the next call tries again."""
        async with self._lock:
            withdrawal = self._folder.withdrawn()
            if withdrawal is None:
                return
            if not self._leased():
                await self._give_back(withdrawal)
            elif not withdrawal.drained and await self._ended():
                self._write(withdrawal.model_copy(update={"drained": True}))
                log.info("requests have ended: measuring for %s", withdrawal.measurement)

    async def _ended(self) -> bool:
        """Whether the pod is gone from its endpoints and its last request from the engine."""
        requests = (await self._engine.counters(self._draft_tokens)).requests
        return self._departure.over(requests) and await self._at_rest()

    async def _give_back(self, withdrawal: Withdrawal) -> None:
        self._lease = None
        if self._folder.ordered().mode is not EngineMode.DRAFT:
            self._start(EngineMode.DRAFT)
        try:
            engine = self._running()
        except EngineFault:
            return  # it is being started
        try:
            await self._restore(withdrawal, engine.boot)
        except EngineFault as error:
            self._failed += 1
            if self._failed < ATTEMPTS:
                raise
            if self._folder.engine_state() == engine:
                log.error("the engine cannot go back to version %d and is started anew: %s", withdrawal.version, error)  # noqa: TRY400 - the message says it all
                self._start(EngineMode.DRAFT)
            return
        self._held, self._sums, self._failed = None, {}, 0
        self._folder.withdrawal.unlink()
        log.info("back after %s with version %d", withdrawal.measurement, withdrawal.version)

    async def _restore(self, withdrawal: Withdrawal, boot: str) -> None:
        """See that the engine holds ``current`` and runs; raises :class:`EngineFault` when it does not."""
        with contextlib.suppress(EngineFault):  # refused when no update was begun
            await self._engine.end()
        await self._engine.resume()
        current = self._current(withdrawal)
        if boot != withdrawal.boot:
            await self._anchored(withdrawal, boot)
        elif await self._engine.version() != current.version or await self._engine.checksum() != withdrawal.checksum:
            await self._load(current, withdrawal, boot)
