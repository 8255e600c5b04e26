"""Lends a pod to a validator: the pod leaves its Service, and returns with exactly the draft that it served.

::

    serving --request--> draining --clients gone--> measuring --lease over--> returning --current restored--> serving

Invariants (promise 1): a withdrawn pod is never ready. A trial draft is loaded only while ``withdrawal.json`` exists
and the engine's guard answers with the name of the measurement. A trial draft never becomes ``current``. The engine
counts as restored in two cases only: its version and checksum show that it holds exactly ``current``, or it was started
again, because an engine always starts with ``current``. The lease lives in memory only. So an agent that restarts has
no lease, and its pod returns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from aurora_protocol.agent_api import MeasurementPhase, MeasurementRequest, MeasurementStatus, TrialRequest
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.errors import EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.draft_cache import StagedDraft
from aurora_runtime.serving.agent.swapper import PodContext, Swapper
from aurora_runtime.serving.pod_files import write_atomically
from aurora_runtime.serving.pod_records import EngineState, Withdrawal, pass_digest
from aurora_runtime.store_thread import call_in_thread, finish_in_thread
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 15.0
"""Time for Kubernetes to notice that a pod is not ready (6 s of probes) and to remove the pod from every endpoint.

No client has a connection left by then, but for requests that run: every answer of a withdrawn pod closes its
connection, and the engine closes connections that idle for 5 s.
"""
LOST_MEASUREMENT: Final = "unknown"
"""Stands for the measurement whose ``withdrawal.json`` was damaged."""
GUARD_TO_SCHEDULER_SECONDS: Final = 0.2
"""A request that the guard has let in reaches the scheduler within this time."""
MAX_RESTORE_ATTEMPTS: Final = 3
"""After so many failed restores the engine is started again. A single failure may only mean a slow engine."""


class WithdrawnEngine:
    """The engine of one pod while the pod is withdrawn. All methods run on one event loop."""

    def __init__(self, pod: PodContext) -> None:
        self._pod = pod
        self._draft_swap: DraftSwap | None = None
        self._draft_swap_boot = ""
        self._last_trial: StagedDraft | None = None  # stays staged, because the two measured drafts take turns
        self._failed_restores = 0

    async def begin(self, withdrawal: Withdrawal) -> None:
        """Withdraw the pod. From now on the pod is not ready."""
        self._reset()
        await self.write_withdrawal(withdrawal)

    async def write_withdrawal(self, withdrawal: Withdrawal) -> None:
        path, data = self._pod.folder.withdrawal, withdrawal.to_json()
        await finish_in_thread(lambda: write_atomically(path, data, durable=True))

    async def replace_damaged_withdrawal(self) -> None:
        """Begin the pod's return when ``withdrawal.json`` is damaged.

        The checksum of ``current`` is lost, so nothing shows what the engine holds, and the engine is started again.
        Until then the guard refuses clients, because the engine may hold a trial draft.

        Raises :class:`EngineFault` when the pod has no current draft.
        """
        current, engine = self._pod.drafts.current(), self._pod.folder.read_engine_state()
        if current is None:
            raise EngineFault("withdrawal.json is damaged, and the pod has no current draft: delete the pod")
        self._reset()
        boot = engine.boot if engine is not None else ""
        await self.write_withdrawal(
            Withdrawal(
                measurement=LOST_MEASUREMENT,
                boot="",
                current_version=current.version,
                current_digest=current.digest,
                current_checksum="",
                trial_boot=boot,
                restart_boot=boot,
                pass_sha256="0" * 64,
            )
        )

    def require_running(self) -> EngineState:
        """The state of the engine. Raises :class:`EngineFault` unless it is ready."""
        state = self._pod.folder.read_engine_state()
        if state is None or not state.ready:
            raise EngineFault("the engine is not up")
        return state

    async def load_trial(
        self, version: int, digest: str, boot: str, withdrawal: Withdrawal, *, given_up: Callable[[], bool]
    ) -> bool:
        """Load a trial draft, unless the engine holds it already.

        Returns False while a client's request is still running: call again then.

        Args:
            given_up: whether the lease is over. The download then ends, because it holds the pod's return up.

        Raises:
            RuntimeFault, StoreError: the draft cannot be loaded. The current draft is restored at once if possible, and
                otherwise when the pod returns.
        """
        if boot == self._draft_swap_boot and self._draft_swap is not None and self._draft_swap.has_confirmed(digest):
            return True
        if boot != withdrawal.boot:
            withdrawal = await self._record_restart(withdrawal, boot)
        current = self._current_draft(withdrawal)
        draft = await self._stage(version, digest, current, given_up)
        if given_up():
            raise EngineFault("the lease ended during the download")
        if await self._pod.engine.guarding_measurement() != withdrawal.measurement:
            raise EngineFault("the engine's guard is not in place: no trial draft is loaded")
        if withdrawal.trial_boot != boot:
            await self.write_withdrawal(withdrawal.model_copy(update={"trial_boot": boot}))
            await asyncio.sleep(GUARD_TO_SCHEDULER_SECONDS)
        if not await self._pod.engine.flush_if_idle():
            return False  # a client's request, let in before the guard closed
        if self.require_running().boot != boot:
            raise EngineFault("the engine was started again meanwhile: its guard does not know of this trial")
        await self._draft_swap_of(withdrawal, boot).load_or_restore(draft, current)
        return True

    async def _stage(
        self, version: int, digest: str, current: StagedDraft, given_up: Callable[[], bool]
    ) -> StagedDraft:
        keep = (current,) if self._last_trial is None else (current, self._last_trial)
        draft = await call_in_thread(lambda: self._pod.drafts.stage(version, digest, keep=keep), given_up)
        if digest != current.digest:
            self._last_trial = draft
        return draft

    async def restore_or_restart(self, withdrawal: Withdrawal) -> bool:
        """Make the engine hold ``current`` again, and end the withdrawal.

        Returns True once the engine holds ``current``, and False while the engine is being started: call again.

        Raises :class:`EngineFault` when an attempt failed: call again. After :data:`MAX_RESTORE_ATTEMPTS` failures the
        engine is started again.
        """
        engine = self._pod.folder.read_engine_state()
        if engine is None or not engine.ready or engine.boot == withdrawal.restart_boot:
            return False
        try:
            await self._restore(withdrawal, engine.boot)
        except EngineFault as error:
            self._failed_restores += 1
            if self._failed_restores < MAX_RESTORE_ATTEMPTS:
                raise
            if self._pod.folder.read_engine_state() == engine:
                text = "the engine did not restore version %d and is started again: %s"
                log.error(text, withdrawal.current_version, error)  # noqa: TRY400 - the message is the whole story
                self._failed_restores = 0
                await self.write_withdrawal(withdrawal.model_copy(update={"restart_boot": engine.boot}))
            return False
        self._reset()
        self._pod.folder.withdrawal.unlink()
        return True

    async def _restore(self, withdrawal: Withdrawal, boot: str) -> None:
        """Make sure that the engine holds ``current`` and generates. Raises :class:`EngineFault` when it does not."""
        await self._pod.engine.close_interrupted_update()
        current = self._current_draft(withdrawal)
        if boot != withdrawal.boot:
            await self._record_restart(withdrawal, boot)
        else:
            await self._draft_swap_of(withdrawal, boot).restore(current)

    async def _record_restart(self, withdrawal: Withdrawal, boot: str) -> Withdrawal:
        """Record the checksum of ``current`` after a new start of the engine, before any trial draft is loaded."""
        version = await self._pod.engine.draft_version()
        if version != withdrawal.current_version:
            raise EngineFault(f"the engine started with version {version}, not with {withdrawal.current_version}")
        checksum = await self._pod.engine.draft_checksum()
        recorded = withdrawal.model_copy(update={"boot": boot, "current_checksum": checksum})
        await self.write_withdrawal(recorded)
        return recorded

    def _current_draft(self, withdrawal: Withdrawal) -> StagedDraft:
        current = self._pod.drafts.current()
        if current is None or current.digest != withdrawal.current_digest:
            raise EngineFault("the pod's current draft is not the one that the pod was withdrawn with")
        return current

    def _draft_swap_of(self, withdrawal: Withdrawal, boot: str) -> DraftSwap:
        """The :class:`DraftSwap` of this engine start, which is the one in which the withdrawal's checksum was read."""
        if self._draft_swap is None or self._draft_swap_boot != boot:
            checksums = {withdrawal.current_digest: withdrawal.current_checksum}
            self._draft_swap, self._draft_swap_boot = DraftSwap(self._pod.engine, checksums), boot
        return self._draft_swap

    def _reset(self) -> None:
        self._draft_swap, self._draft_swap_boot = None, ""
        self._last_trial, self._failed_restores = None, 0


class MeasurementLease:
    """The lease of one pod. All methods run on one event loop."""

    def __init__(
        self,
        pod: PodContext,
        swapper: Swapper,
        *,
        read_token: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pod, self._swapper = pod, swapper
        self._read_token, self._clock = read_token, clock
        self._lock = asyncio.Lock()
        self._expires_at: float | None = None
        self._began = 0.0
        self._withdrawn_engine = WithdrawnEngine(pod)

    @property
    def withdrawn(self) -> bool:
        return self._pod.folder.withdrawal.exists()

    def status(self) -> MeasurementStatus | None:
        """The withdrawal's progress for the agent API. None while the pod serves."""
        engine = self._pod.folder.read_engine_state()
        try:
            withdrawal = self._pod.folder.read_withdrawal()
        except InvalidRecord:
            return MeasurementStatus(measurement=LOST_MEASUREMENT, phase=MeasurementPhase.RETURNING)
        if withdrawal is None:
            return None
        phase = MeasurementPhase.MEASURING if withdrawal.drained else MeasurementPhase.DRAINING
        return MeasurementStatus(
            measurement=withdrawal.measurement,
            phase=phase if self._is_valid() else MeasurementPhase.RETURNING,
            machine=engine.machine if engine else None,
            boot=engine.boot if engine and engine.ready else "",
        )

    def _readable_withdrawal(self) -> Withdrawal | None:
        """The withdrawal. None: there is none, or :meth:`advance` has to replace it because it is damaged."""
        try:
            return self._pod.folder.read_withdrawal()
        except InvalidRecord:
            return None

    def _is_valid(self) -> bool:
        return self._expires_at is not None and self._clock() < self._expires_at

    async def request(self, request: MeasurementRequest) -> None:
        """Withdraw the pod, renew its lease, or end the lease.

        Raises:
            SwapRefused: the epoch is too old, another measurement holds the pod, the lease is over, or a swap is
                running.
            EngineFault: the engine is not up, or does not hold ``current``.
        """
        last = self._swapper.last_request()
        if last is not None and request.epoch < last.epoch:
            raise SwapRefused(f"epoch {request.epoch} is older than epoch {last.epoch}, which this pod has accepted")
        if request.begin and request.lease_seconds > 0 and not self.withdrawn:
            async with self._lock:
                if not self.withdrawn:
                    await self._withdraw(request)
                    return
        # Without the lock: a trial may hold it for as long as a download takes, and the lease must not end meanwhile.
        withdrawal = self._readable_withdrawal()
        is_holder = withdrawal is not None and withdrawal.measurement == request.measurement
        if request.lease_seconds == 0:
            self._expires_at = None if is_holder else self._expires_at
        elif is_holder and self._is_valid():
            self._expires_at = self._clock() + request.lease_seconds
        else:
            raise SwapRefused(f"the pod is not withdrawn for {request.measurement}, or its lease is over")

    async def _withdraw(self, request: MeasurementRequest) -> None:
        engine, current = self._withdrawn_engine.require_running(), self._pod.drafts.current()
        version, report = await self._pod.engine.draft_version(), await self._pod.engine.draft_report()
        if current is None or version != current.version or not (report.is_of_start or report.is_of(current.digest)):
            raise EngineFault(f"the engine holds version {version} ({report}), which is not the pod's current draft")
        async with self._swapper.no_swap():
            if self._withdrawn_engine.require_running() != engine or self._pod.drafts.current() != current:
                raise SwapRefused("a swap ran, or the engine was started again, meanwhile")
            self._began = self._clock()
            self._expires_at = self._began + request.lease_seconds
            try:
                await self._withdrawn_engine.begin(
                    Withdrawal(
                        measurement=request.measurement,
                        boot=engine.boot,
                        current_version=version,
                        current_digest=current.digest,
                        current_checksum=report.checksum,
                        pass_sha256=pass_digest(self._read_token(), request.measurement),
                    )
                )
            except OSError:
                self._expires_at = None
                raise
        log.info("the pod is withdrawn for %s", request.measurement)

    async def request_trial(self, request: TrialRequest) -> bool:
        """Load the requested draft, and empty the prefix cache.

        Returns True once the engine is ready for the trial. False means that it is not yet: call again.

        Raises:
            SwapRefused: the pod is not withdrawn for this measurement.
            RuntimeFault, StoreError: the trial is not possible. The pod can still return.
        """
        async with self._lock:
            withdrawal = self._readable_withdrawal()
            if withdrawal is None or withdrawal.measurement != request.measurement or not self._is_valid():
                raise SwapRefused(f"the pod is not withdrawn for {request.measurement}, or its lease is over")
            if not withdrawal.drained:
                return False
            try:
                boot = self._withdrawn_engine.require_running().boot
            except EngineFault:
                return False
            loaded = await self._withdrawn_engine.load_trial(
                request.version, request.digest, boot, withdrawal, given_up=lambda: not self._is_valid()
            )
            return loaded and await self._pod.engine.flush_if_idle()

    async def run(self) -> None:
        """Until cancelled: advance the withdrawal, if there is one."""
        while True:
            if self.withdrawn:
                try:
                    await self.advance()
                except (RuntimeFault, StoreError, InvalidRecord, OSError) as error:
                    log.warning("the withdrawn pod could not take its next step and will retry: %s", error)
            await asyncio.sleep(POLL_SECONDS)

    async def advance(self) -> None:
        """Take the next step of a withdrawal. After an :class:`EngineFault` the next call tries the step again.

        A damaged ``withdrawal.json`` is replaced, and the pod then returns.
        """
        async with self._lock:
            try:
                withdrawal = self._pod.folder.read_withdrawal()
            except InvalidRecord as error:
                await self._end_damaged(error)
                return
            if withdrawal is None:
                return
            if not self._is_valid():
                self._expires_at = None
                if await self._withdrawn_engine.restore_or_restart(withdrawal):
                    log.info("returned from %s with version %d", withdrawal.measurement, withdrawal.current_version)
            elif not withdrawal.drained and await self._clients_are_gone():
                await self._withdrawn_engine.write_withdrawal(withdrawal.model_copy(update={"drained": True}))
                log.info("the pod is drained: measuring for %s", withdrawal.measurement)

    async def _end_damaged(self, error: InvalidRecord) -> None:
        """End the measurement whose ``withdrawal.json`` is damaged. The operator repeats the measurement."""
        text = "withdrawal.json is damaged: the measurement ends, and the engine starts again with the current draft"
        log.error("%s; check the node's disk if this comes again: %s", text, error)
        self._expires_at = None
        await self._withdrawn_engine.replace_damaged_withdrawal()

    async def _clients_are_gone(self) -> bool:
        return self._clock() - self._began >= DRAIN_SECONDS and await self._pod.engine.flush_if_idle()
