"""Lends a pod to a validator that asks for it: the pod leaves its Service, and returns with the draft that it served.

::

    serving --request--> draining --clients gone--> measuring --lease over--> returning --current restored--> serving

Invariants (promise 1): a withdrawn pod is never ready. A trial draft is loaded only after the engine's guard has
refused clients and answered with the name of the measurement. A trial draft never becomes ``current``. The engine
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
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.errors import EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.draft_cache import StagedDraft
from aurora_runtime.serving.agent.swapper import PodContext, Swapper
from aurora_runtime.serving.pod_files import Withdrawal, pass_digest, write_atomically
from aurora_runtime.store_thread import call_in_thread, finish_in_thread
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 15.0
"""Time for Kubernetes to notice that a pod is not ready (6 s of probes) and to remove the pod from every endpoint.

No client has a connection left by then, but for requests that run: every answer of a withdrawn pod closes its
connection, and the engine closes connections that idle for 5 s.
"""
GUARD_TO_SCHEDULER_SECONDS: Final = 0.2
"""A request that the guard has let in reaches the scheduler within this time."""
MAX_RESTORE_ATTEMPTS: Final = 3
"""After so many failed restores the engine is started again. A single failure may only mean a slow engine."""


class MeasurementLease:
    """The lease of one pod. All methods run on one event loop.

    A withdrawal is of one engine start. The next start removes ``withdrawal.json``, because it holds ``current``.
    """

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
        self._reset()

    def _reset(self) -> None:
        self._drained = False
        self._draft_swap: DraftSwap | None = None  # of the withdrawal's engine start
        self._last_trial: StagedDraft | None = None  # stays staged, because the two measured drafts take turns
        self._failed_restores = 0

    @property
    def withdrawn(self) -> bool:
        return self._pod.folder.withdrawal.exists()

    def status(self) -> MeasurementStatus | None:
        """The withdrawal's progress for the agent API. None while the pod serves."""
        engine, withdrawal = self._pod.folder.read_engine_state(), self._pod.folder.read_withdrawal()
        if withdrawal is None:
            return None
        phase = MeasurementPhase.MEASURING if self._drained else MeasurementPhase.DRAINING
        return MeasurementStatus(
            measurement=withdrawal.measurement,
            phase=phase if self._is_valid() and not withdrawal.restart else MeasurementPhase.RETURNING,
            machine=engine.machine if engine else None,
            boot=engine.boot if engine and engine.ready else "",
        )

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
        withdrawal = self._pod.folder.read_withdrawal()
        is_holder = withdrawal is not None and withdrawal.measurement == request.measurement
        if request.lease_seconds == 0:
            self._expires_at = None if is_holder else self._expires_at
        elif is_holder and self._is_valid():
            self._expires_at = self._clock() + request.lease_seconds
        else:
            raise SwapRefused(f"the pod is not withdrawn for {request.measurement}, or its lease is over")

    async def _withdraw(self, request: MeasurementRequest) -> None:
        boot, current = self._pod.folder.ready_boot(), self._pod.drafts.current()
        if not boot:
            raise EngineFault("the engine is not up")
        version, report = await self._pod.engine.draft_version(), await self._pod.engine.draft_report()
        if current is None or version != current.version or not (report.is_of_start or report.is_of(current.digest)):
            raise EngineFault(f"the engine holds version {version} ({report}), which is not the pod's current draft")
        async with self._swapper.no_swap():
            if self._pod.folder.ready_boot() != boot or self._pod.drafts.current() != current:
                raise SwapRefused("a swap ran, or the engine was started again, meanwhile")
            self._began = self._clock()
            self._expires_at = self._began + request.lease_seconds
            self._reset()
            withdrawal = Withdrawal(
                measurement=request.measurement,
                boot=boot,
                current_digest=current.digest,
                current_checksum=report.checksum,
                pass_sha256=pass_digest(self._read_token(), request.measurement),
            )
            try:
                await self._write(withdrawal)
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
            withdrawal = self._pod.folder.read_withdrawal()
            if withdrawal is None or withdrawal.measurement != request.measurement or not self._is_valid():
                raise SwapRefused(f"the pod is not withdrawn for {request.measurement}, or its lease is over")
            if not self._drained or not (boot := self._pod.folder.ready_boot()):
                return False
            if boot != withdrawal.boot:
                raise EngineFault("the engine was started again: the measurement is over")
            return await self._load_trial(request, withdrawal) and await self._pod.engine.flush_if_idle()

    async def _load_trial(self, request: TrialRequest, withdrawal: Withdrawal) -> bool:
        """Load a trial draft, unless the engine holds it already.

        Returns False while a request is still running: call again then. After an error the current draft is
        restored at once if possible, and otherwise when the pod returns.
        """
        draft_swap, current = self._draft_swap_of(withdrawal), self._current_draft(withdrawal)
        if draft_swap.has_confirmed(request.digest):
            return True
        keep = (current,) if self._last_trial is None else (current, self._last_trial)
        draft = await call_in_thread(
            lambda: self._pod.drafts.stage(request.version, request.digest, keep=keep),
            lambda: not self._is_valid(),  # the download ends with the lease, because it holds the pod's return up
        )
        if request.digest != current.digest:
            self._last_trial = draft
        if not self._is_valid():
            raise EngineFault("the lease ended during the download")
        if await self._pod.engine.guarding_measurement() != withdrawal.measurement:
            raise EngineFault("the engine's guard is not in place: no trial draft is loaded")
        if not await self._pod.engine.flush_if_idle():
            return False  # a request of the measurement that took too long
        if self._pod.folder.ready_boot() != withdrawal.boot:
            raise EngineFault("the engine was started again meanwhile: its guard does not know of this trial")
        await draft_swap.load_or_restore(draft, current)
        return True

    async def run(self) -> None:
        """Until cancelled: advance the withdrawal, if there is one."""
        while True:
            if self.withdrawn:
                try:
                    await self.advance()
                except (RuntimeFault, StoreError, OSError) as error:
                    log.warning("the withdrawn pod could not take its next step and will retry: %s", error)
            await asyncio.sleep(POLL_SECONDS)

    async def advance(self) -> None:
        """Take the next step of a withdrawal. After an :class:`EngineFault` the next call tries the step again."""
        async with self._lock:
            withdrawal = self._pod.folder.read_withdrawal()
            if withdrawal is None:
                return
            if withdrawal.restart or not self._is_valid():
                self._expires_at = None
                if await self._restore_or_restart(withdrawal):
                    log.info("the pod returned from %s", withdrawal.measurement)
            elif not self._drained and await self._close_to_clients(withdrawal):
                self._drained = True
                log.info("the pod is drained: measuring for %s", withdrawal.measurement)

    async def _close_to_clients(self, withdrawal: Withdrawal) -> bool:
        """Close the guard once the requests of clients have ended. Returns whether none runs that it let in before."""
        if self._clock() - self._began < DRAIN_SECONDS or not await self._pod.engine.flush_if_idle():
            return False
        if withdrawal.closed:
            return True
        await self._write(withdrawal.model_copy(update={"closed": True}))
        await asyncio.sleep(GUARD_TO_SCHEDULER_SECONDS)
        return await self._pod.engine.flush_if_idle()

    async def _restore_or_restart(self, withdrawal: Withdrawal) -> bool:
        """Make the engine hold ``current`` again, and end the withdrawal.

        Returns True once the engine holds ``current``, and False while the engine is being started: call again.

        Raises :class:`EngineFault` when an attempt failed: call again. After :data:`MAX_RESTORE_ATTEMPTS` failures the
        launcher starts the engine again.
        """
        boot = self._pod.folder.ready_boot()
        if not boot or (withdrawal.restart and boot == withdrawal.boot):
            return False
        try:
            if boot == withdrawal.boot:  # otherwise the engine was started again, with ``current``
                await self._pod.engine.close_interrupted_update()
                await self._draft_swap_of(withdrawal).restore(self._current_draft(withdrawal))
        except EngineFault as error:
            self._failed_restores += 1
            if self._failed_restores < MAX_RESTORE_ATTEMPTS:
                raise
            log.error("the engine did not restore its draft and is started again: %s", error)  # noqa: TRY400
            await self._write(withdrawal.model_copy(update={"restart": True}))
            return False
        self._reset()
        self._pod.folder.withdrawal.unlink(missing_ok=True)
        return True

    async def _write(self, withdrawal: Withdrawal) -> None:
        path, data = self._pod.folder.withdrawal, withdrawal.to_json()
        await finish_in_thread(lambda: write_atomically(path, data, durable=True))

    def _current_draft(self, withdrawal: Withdrawal) -> StagedDraft:
        current = self._pod.drafts.current()
        if current is None or current.digest != withdrawal.current_digest:
            raise EngineFault("the pod's current draft is not the one that the pod was withdrawn with")
        return current

    def _draft_swap_of(self, withdrawal: Withdrawal) -> DraftSwap:
        if self._draft_swap is None:
            checksums = {withdrawal.current_digest: withdrawal.current_checksum}
            self._draft_swap = DraftSwap(self._pod.engine, checksums)
        return self._draft_swap
