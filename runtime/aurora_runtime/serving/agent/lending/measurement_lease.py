"""The lease under which a pod leaves its Service, so that a validator can measure drafts on its engine.

::

    serving --request--> draining --clients gone--> measuring --lease over--> returning --current restored--> serving

Invariants (promise 1): a withdrawn pod is never ready. It serves again only when its engine holds exactly ``current``
(:mod:`aurora_runtime.serving.agent.lending.withdrawn_engine`). The lease lives in memory only. So an agent that
restarts has no lease, and its pod returns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from aurora_protocol.agent_api import MeasurementPhase, MeasurementRequest, MeasurementStatus, TrialRequest
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.errors import EngineFault, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.lending.drain import Drain
from aurora_runtime.serving.agent.lending.withdrawn_engine import LOST_MEASUREMENT, WithdrawnEngine
from aurora_runtime.serving.agent.pod_context import AgentToken, PodContext
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_runtime.serving.pod_records import Withdrawal, pass_digest
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0


class MeasurementLease:
    """The lease of one pod. All methods run on one event loop."""

    def __init__(
        self, pod: PodContext, swapper: Swapper, *, token: AgentToken, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pod, self._swapper = pod, swapper
        self._token, self._clock = token, clock
        self._lock = asyncio.Lock()
        self._expires_at: float | None = None
        self._drain = Drain(clock)
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
            self._drain = Drain(self._clock)
            self._expires_at = self._clock() + request.lease_seconds
            try:
                await self._withdrawn_engine.begin(
                    Withdrawal(
                        measurement=request.measurement,
                        boot=engine.boot,
                        current_version=version,
                        current_digest=current.digest,
                        current_checksum=report.checksum,
                        pass_sha256=pass_digest(self._token.value, request.measurement),
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
        traffic = await self._pod.engine.traffic()
        return self._drain.is_complete(traffic.ended) and await self._pod.engine.flush_if_idle()
