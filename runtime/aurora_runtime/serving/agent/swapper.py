"""Swaps the draft that a pod serves: stage the new draft, load and confirm it, restore the previous one on failure.

Invariants: generation is never left paused. ``current`` moves only to a draft that the engine was confirmed to hold, by
version and by digest. An order of a higher epoch ends a download, and the draft that was being downloaded is then not
loaded. A draft is loaded only in an engine start whose own draft is known. A failed swap leaves the engine with the
previous draft, or reports that the previous draft could not be restored. A request with an older epoch than an accepted
one is refused, even after a restart of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from aurora_protocol.agent_api import SwapPhase, SwapRequest, SwapStatus
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.engine.speculation_settings import PLACEHOLDER_VERSION
from aurora_runtime.errors import EngineFault, EngineGone, RuntimeFault, SizesDiffer, SwapRefused
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_runtime.store_thread import call_in_thread, finish_in_thread
from aurora_store.errors import DigestMismatch, ObjectMissing, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PodContext:
    """One inference pod, as all parts of its agent see it."""

    name: str
    folder: PodFolder
    engine: SGLangClient
    drafts: DraftCache


def _is_transient(error: Exception) -> bool:
    """Whether a swap failed for a reason outside the draft: the store, the disk, or an engine that ended meanwhile."""
    if isinstance(error, StoreError):
        return not isinstance(error, (ObjectMissing, DigestMismatch))
    return isinstance(error, (EngineGone, OSError))


class Swapper:
    """The swaps of one pod. All methods run on one event loop.

    Args:
        on_finished: called with the result of each swap (``success`` or ``failure``) and the seconds of its pause.
    """

    def __init__(
        self,
        pod: PodContext,
        *,
        on_finished: Callable[[str, float | None], None] = lambda _result, _pause_seconds: None,
    ) -> None:
        self._pod = pod
        self._on_finished = on_finished
        self._task: asyncio.Task[None] | None = None
        self._staging_given_up = threading.Event()
        self._lock = asyncio.Lock()
        self._recovered_boot = ""
        self.draft_swap = DraftSwap(pod.engine)
        """Loads and confirms drafts in the running engine start."""
        self.status = SwapStatus()

    @property
    def is_swapping(self) -> bool:
        return self._task is not None and not self._task.done()

    def last_request(self) -> SwapRequest | None:
        """The last accepted request. It is read from disk, because the fence must outlive the agent.

        None: there is none, or the disk has damaged its file. The present leader's next order then sets the fence anew.
        """
        return self._pod.folder.read_swap_request()

    @contextlib.asynccontextmanager
    async def no_swap(self) -> AsyncIterator[None]:
        """Hold off new swaps. Raises :class:`SwapRefused` when a swap is running."""
        async with self._lock:
            if self.is_swapping:
                raise SwapRefused("a swap is running")
            yield

    async def recover(self, boot: str) -> None:
        """Once per engine start, close an update that a dead agent left open and make the engine's draft ``current``.

        When the engine took a version over without its draft, ``current`` is loaded again. Raises :class:`EngineFault`
        while the engine does not answer.
        """
        if boot == self._recovered_boot:
            return  # without the lock, so that no probe waits for an order that is being written to the disk
        async with self._lock:
            # The engine of a withdrawn pod may hold a trial draft, which `current` must never follow.
            if boot != self._recovered_boot and not self.is_swapping and not self._pod.folder.withdrawal.exists():
                await self._recover()
                self._recovered_boot = boot

    async def _recover(self) -> None:
        engine, drafts = self._pod.engine, self._pod.drafts
        version = await engine.draft_version()
        await engine.close_interrupted_update()
        current, staged = drafts.current(), drafts.find_staged(version)
        self.draft_swap = DraftSwap(engine)
        report = await self.draft_swap.report(version)
        if staged is not None and (current is None or current.version != version):
            if report.is_of(staged.digest):
                drafts.make_current(staged)
                current = staged
            elif current is not None:
                log.warning("the engine calls its draft version %d, but holds the draft %s", version, report)
                await self.draft_swap.remember_checksum(current)
                await self.draft_swap.load(current)
        if current is not None and current.version == version:
            await self.draft_swap.remember_checksum(current)

    async def request(self, request: SwapRequest) -> None:
        """Start a swap, unless the pod serves this draft already.

        Raises:
            SwapRefused: the epoch is too old, or another swap is running.
            EngineFault: the engine is not up, or the pod is withdrawn.
        """
        async with self._lock:
            await self._accept(request)

    async def _accept(self, request: SwapRequest) -> None:
        last = self.last_request()
        if last is not None and request.epoch < last.epoch:
            raise SwapRefused(f"epoch {request.epoch} is older than epoch {last.epoch}, which this pod has accepted")
        if self.is_swapping and last is not None and (request.version, request.digest) == (last.version, last.digest):
            if request.epoch > last.epoch:
                # The running swap obeys both orders, and the fence moves to the newer.
                await self._record_request(request)
                self.status = self.status.model_copy(update={"epoch": request.epoch})
            return
        self._require_interruptible(request, last)
        boot = self._pod.folder.ready_boot()
        if not self.is_swapping and (not boot or boot != self._recovered_boot):
            raise EngineFault("the engine is not up yet")
        version = await self._pod.engine.draft_version()
        current = self._pod.drafts.current()
        if self._pod.folder.withdrawal.exists():
            raise EngineFault("the pod is withdrawn for a measurement")
        self._require_interruptible(request, last)  # a running swap may have got further meanwhile
        self._staging_given_up.set()
        await self._record_request(request)
        if version == request.version and current is not None and current.digest == request.digest:
            self.status = SwapStatus(version=version, epoch=request.epoch)
            return
        self.status = SwapStatus(phase=SwapPhase.STAGING, version=request.version, epoch=request.epoch)
        former, self._staging_given_up = self._task, threading.Event()
        self._task = asyncio.create_task(self._swap(request, former, self._staging_given_up))

    async def _record_request(self, request: SwapRequest) -> None:
        """Make ``request`` the last accepted one. From now on requests of older epochs are refused.

        The caller holds the lock, so that records are written in the order of their checks.
        """
        path, data = self._pod.folder.swap_request, request.to_json()
        await finish_in_thread(lambda: write_atomically(path, data, durable=True))

    def _require_interruptible(self, request: SwapRequest, last: SwapRequest | None) -> None:
        """Raise :class:`SwapRefused` if a swap runs, unless it only downloads and ``request`` is of a higher epoch.

        A rollback must not wait for a slow download, and the downloaded draft must not be loaded after the rollback.
        """
        if not self.is_swapping or self._staging_given_up.is_set():
            return
        if self.status.phase is not SwapPhase.STAGING or last is None or request.epoch <= last.epoch:
            raise SwapRefused(f"a swap to version {self.status.version} is running")

    async def wait(self) -> None:
        """Wait until no swap is running. A pod that stops must not leave a swap unfinished."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _swap(self, request: SwapRequest, former: asyncio.Task[None] | None, given_up: threading.Event) -> None:
        if former is not None:
            await asyncio.wait([former])
        drafts = self._pod.drafts
        draft_may_be_at_fault = False
        try:
            previous_version = await self._pod.engine.draft_version()
            previous = await call_in_thread(lambda: drafts.find_or_stage(previous_version), given_up.is_set)
            await self.draft_swap.remember_checksum(previous)
            if previous.version == PLACEHOLDER_VERSION:
                await call_in_thread(lambda: drafts.require_lineage_sizes(previous), given_up.is_set)
            draft_may_be_at_fault = True
            draft = await call_in_thread(
                lambda: drafts.stage(request.version, request.digest, keep=(previous,)), given_up.is_set
            )
            if given_up.is_set():  # no await from here to the phase, so that no order is accepted in between
                log.info("the swap to version %d was given up for a newer order", request.version)
                return
            self._require_recovered_start()
            self.status = self.status.model_copy(update={"phase": SwapPhase.SWAPPING})
            pause_seconds = await self.draft_swap.load_or_restore(draft, previous)
            drafts.make_current(draft)
        except (RuntimeFault, StoreError, OSError) as error:
            if given_up.is_set():
                log.info("the swap to version %d was given up for a newer order: %s", request.version, error)
                return
            transient = not draft_may_be_at_fault or _is_transient(error)
            self._fail(request, str(error), transient=transient, needs_restart=isinstance(error, SizesDiffer))
        except Exception as error:  # the task's outermost frame: an unreported failure would look like an endless swap
            log.exception("swap to version %d failed", request.version)
            self._fail(request, type(error).__name__, transient=False)
        else:
            self.status = SwapStatus(version=request.version, epoch=self.status.epoch, pause_seconds=pause_seconds)
            self._on_finished("success", pause_seconds)
            log.info("serving draft version %d after a pause of %.3f s", request.version, pause_seconds)

    def _require_recovered_start(self) -> None:
        """Raise :class:`EngineGone` when the engine has ended since its draft became known."""
        if self._pod.folder.ready_boot() != self._recovered_boot:
            raise EngineGone("the engine was started again during the download")

    def _fail(self, request: SwapRequest, error: str, *, transient: bool, needs_restart: bool = False) -> None:
        self.status = SwapStatus(
            phase=SwapPhase.FAILED,
            version=request.version,
            epoch=self.status.epoch,
            error=error[:1000],
            transient=transient,
            needs_restart=needs_restart,
        )
        self._on_finished("failure", None)
        log.error("swap to version %d failed: %s", request.version, error)
