"""Changes the engine of a withdrawn pod: loads trial drafts, and restores the current draft.

Invariants (promise 1): a trial draft is loaded only while ``withdrawal.json`` exists and the engine's guard answers
with the name of the measurement. A trial draft never becomes ``current``. The engine counts as restored in two cases
only: its version and checksum show that it holds exactly ``current``, or it was started again, because an engine always
starts with ``current``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving.agent.draft_cache import StagedDraft
from aurora_runtime.serving.agent.pod_context import PodContext
from aurora_runtime.serving.pod_files import write_atomically
from aurora_runtime.serving.pod_records import EngineState, RestartOrder, Withdrawal
from aurora_runtime.store_thread import call_in_thread, finish_in_thread

log = logging.getLogger(__name__)

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
        await self.order_restart()  # first, so that a running engine never counts as started again
        await self.write_withdrawal(
            Withdrawal(
                measurement=LOST_MEASUREMENT,
                boot="",
                current_version=current.version,
                current_digest=current.digest,
                current_checksum="",
                trial_boot=engine.boot if engine is not None else "",
                pass_sha256="0" * 64,
            )
        )

    def require_running(self) -> EngineState:
        """The state of the engine. Raises :class:`EngineFault` unless it is ready and follows the last order."""
        state = self._pod.folder.read_engine_state()
        if state is None or not state.ready or state.order_id != self._order_id():
            raise EngineFault("the engine is not up")
        return state

    def _order_id(self) -> str | None:
        """The id of the last order of a restart. None for a damaged order, which no engine follows."""
        try:
            return self._pod.folder.read_restart_order().order_id
        except InvalidRecord:
            return None

    async def order_restart(self) -> None:
        """Order the launcher to start the engine again."""
        path, data = self._pod.folder.restart, RestartOrder(order_id=secrets.token_hex(8)).to_json()
        await finish_in_thread(lambda: write_atomically(path, data, durable=True))
        self._failed_restores = 0

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
        if self._order_id() is None:
            await self.order_restart()
        try:
            engine = self.require_running()
        except EngineFault:
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
                await self.order_restart()
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
