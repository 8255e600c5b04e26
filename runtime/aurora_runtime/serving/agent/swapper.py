"""One swap after another: stage, pause, update, resume, confirm; and back to the previous draft when anything fails.

Invariants: generation is never left paused; ``current`` moves only to a draft that the engine was seen to hold, by
version and by checksum; a swap that fails leaves the engine with the draft that it had, or says that it could not;
a request of an older epoch than one obeyed is refused, also after a restart of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from aurora_protocol.agent_api import SwapPhase, SwapRequest, SwapStatus
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault, EngineGone, RuntimeFault, SwapRefused
from aurora_runtime.serving.agent.draft_cache import DraftCache, StagedDraft
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_store.errors import DigestMismatch, ObjectMissing, StoreError

log = logging.getLogger(__name__)

EPOCH_FILE: Final = "swap.json"


def _transient(error: Exception) -> bool:
    """Whether a swap failed for what is around the draft: the store, the disk, an engine that ended meanwhile."""
    if isinstance(error, StoreError):
        return not isinstance(error, (ObjectMissing, DigestMismatch))
    return isinstance(error, (EngineGone, OSError))


class Swapper:
    """The swaps of one pod. All methods run on one event loop."""

    def __init__(
        self,
        engine: SGLangClient,
        drafts: DraftCache,
        folder: PodFolder,
        *,
        finished: Callable[[str, float | None], None] = lambda _result, _pause: None,
    ) -> None:
        self._engine = engine
        self._drafts = drafts
        self._epoch_file = folder.path / EPOCH_FILE
        self._withdrawal = folder.withdrawal
        self._finished = finished
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._boot = ""
        self._sums: dict[str, str] = {}  # what each file gave in this engine, by the file's digest
        self._held: tuple[int, str] | None = None
        self.status = SwapStatus()
        self.pausing = False

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def last_request(self) -> SwapRequest | None:
        """The last request that was obeyed, from disk: the fence outlives the agent."""
        try:
            return SwapRequest.from_json(self._epoch_file.read_bytes())
        except FileNotFoundError:
            return None

    async def take_over(self, boot: str) -> None:
        """Once per boot of the engine: end what an agent that died left open, and let ``current`` follow the engine.

        Raises :class:`EngineFault` while the engine is not there yet.
        """
        async with self._lock:
            # The engine of a withdrawn pod may hold a draft that `current` must never follow.
            if boot != self._boot and not self.busy and not self._withdrawal.exists():
                await self._recover()
                self._boot = boot

    async def _recover(self) -> None:
        version = await self._engine.version()
        with contextlib.suppress(EngineFault):  # refused when no update was begun
            await self._engine.end()
        await self._engine.resume()
        current = self._drafts.current()
        held = self._drafts.find(version)
        if held is not None and (current is None or current.version != version):
            self._drafts.make_current(held)
            current = held
        self._sums, self._held = {}, None
        checksum = await self.checksum(version)
        if current is not None and current.version == version:
            self._sums = {current.digest: checksum}

    async def checksum(self, version: int) -> str:
        """The engine's checksum of the draft ``version`` that it holds; asked for once: it costs the engine time."""
        if self._held is None or self._held[0] != version:
            self._held = version, await self._engine.checksum()
        return self._held[1]

    async def request(self, request: SwapRequest) -> None:
        """Start a swap, unless there is nothing to do.

        Raises:
            SwapRefused: an older epoch, or another swap is going on.
            EngineFault: the engine is not there.
        """
        async with self._lock:
            await self._admit(request)

    async def _admit(self, request: SwapRequest) -> None:
        last = self.last_request()
        if last is not None and request.epoch < last.epoch:
            raise SwapRefused(f"epoch {request.epoch} is older than {last.epoch}")
        if self.busy:
            if last is not None and (request.version, request.digest) == (last.version, last.digest):
                return
            raise SwapRefused(f"a swap to version {self.status.version} is going on")
        if not self._boot:
            raise EngineFault("the engine is not up yet")
        version = await self._engine.version()
        current = self._drafts.current()
        if self._withdrawal.exists():
            raise EngineFault("the pod is withdrawn for a measurement")
        write_atomically(self._epoch_file, request.to_json())
        if version == request.version and current is not None and current.digest == request.digest:
            self.status = SwapStatus(version=version, finished=self.status.finished)
            return
        self.status = SwapStatus(phase=SwapPhase.STAGING, version=request.version)
        self._task = asyncio.create_task(self._swap(request))

    async def wait(self) -> None:
        """Until no swap is going on: a pod that ends must not leave one half done."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _swap(self, request: SwapRequest) -> None:
        pause: float | None = None
        of_the_draft = False  # whether what fails now may be its doing
        try:
            previous = await asyncio.to_thread(self._drafts.holding, await self._engine.version())
            before = await self.checksum(previous.version)
            of_the_draft = True
            draft = await asyncio.to_thread(self._drafts.stage, request.version, request.digest, keep=(previous,))
            self.status = SwapStatus(phase=SwapPhase.SWAPPING, version=request.version)
            pause = await self._replace(draft, previous, before)
        except (RuntimeFault, StoreError, OSError) as error:
            self._fail(request, str(error), pause, transient=not of_the_draft or _transient(error))
        except Exception as error:  # the task's outermost frame: an unseen failure would look like an endless swap
            log.exception("swap to version %d failed", request.version)
            self._fail(request, type(error).__name__, pause)
        else:
            self.status = SwapStatus(version=request.version, pause_seconds=pause, finished=datetime.now(UTC))
            self._finished("success", pause)
            log.info("serving draft version %d after a pause of %.3f s", request.version, pause)

    def _fail(self, request: SwapRequest, error: str, pause: float | None, *, transient: bool = False) -> None:
        self.status = SwapStatus(
            phase=SwapPhase.FAILED,
            version=request.version,
            error=error[:1000],
            transient=transient,
            pause_seconds=pause,
            finished=datetime.now(UTC),
        )
        self._finished("failure", pause)
        log.error("swap to version %d failed: %s", request.version, error)

    async def _replace(self, draft: StagedDraft, previous: StagedDraft, before: str) -> float:
        self._sums[previous.digest] = before
        try:
            pause = await self._apply(draft)
            await self._confirm(draft, previous, before)
        except EngineFault as error:
            await self._restore(previous, before, error)
            raise
        self._drafts.make_current(draft)
        return pause

    async def _apply(self, draft: StagedDraft) -> float:
        """Load ``draft`` in a pause, known as our own; seconds that generation stood still."""
        self.pausing = True
        try:
            return await self._engine.swap(draft.weights, draft.version)
        finally:
            self.pausing = False

    async def _confirm(self, draft: StagedDraft, previous: StagedDraft, before: str) -> None:
        """Raise :class:`EngineFault` unless the engine holds exactly ``draft``."""
        version, checksum = await self._engine.version(), await self._engine.checksum()
        if version != draft.version:
            raise EngineFault(f"the engine says version {version} after the update")
        known = self._sums.get(draft.digest)
        if known is not None and checksum != known:
            raise EngineFault("the draft's checksum is not the one that this file gave before")
        if known is None and checksum == before and draft.digest != previous.digest:
            raise EngineFault("the draft's checksum did not change: the engine did not load the file")
        self._sums[draft.digest] = checksum
        self._held = version, checksum

    async def _restore(self, previous: StagedDraft, before: str, cause: EngineFault) -> None:
        """Bring ``previous`` back, unless the engine still holds it; raises when that cannot be confirmed."""
        self._held = None
        problem = ""
        try:
            if await self._engine.version() == previous.version and await self.checksum(previous.version) == before:
                return
            await self._apply(previous)
            self._held = None
            if await self.checksum(previous.version) != before:
                problem = "its checksum is not what it was"
        except EngineFault as error:
            problem = str(error)
        if problem:
            text = f"{cause}; and version {previous.version} could not be restored: {problem}"
            raise type(cause)(text) from cause
