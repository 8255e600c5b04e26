"""Loads a draft file into a running engine and confirms that the engine holds this file, and all of it.

The agent's swaps, its trial drafts and the validator's engines all load drafts through this module.

Invariants: a pause that may have begun is always ended, whatever an answer said. A load succeeds only when the engine
reports the draft's version and, for every tensor-parallel rank, the digest of the draft's file.

The digest in the report is the one that was sent with the file's path, and the engine's loader sets it after the last
write. The caller has verified the file against its digest.

The checksum is checked without trust in our loader: a file that was loaded before in this engine start must give the
same checksum again.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Protocol

from aurora_runtime.engine.draft_update import SHORT, DraftReport
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault


class DraftFile(Protocol):
    """One version's weights on disk."""

    @property
    def version(self) -> int: ...

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' file."""
        ...

    @property
    def weights(self) -> Path:
        """The weights' file, as the engine sees it."""
        ...


async def load_in_pause(engine: SGLangClient, draft: DraftFile) -> float:
    """Load ``draft`` while generation is paused.

    Running requests keep their state and continue afterwards. Success means only that the engine reported success:
    :class:`DraftSwap` confirms the load. Raises :class:`EngineFault` when a call fails.

    Returns: seconds for which generation was paused.
    """
    ranks = await engine.tensor_parallel_ranks()  # before the pause: the engine may take a while to answer this
    began = time.monotonic()
    update_ended = False
    try:
        await engine.pause_generation()
        await engine.begin_weight_update()
        await engine.update_draft(draft.weights, draft.digest, draft.version, ranks)
        await engine.end_weight_update()
        update_ended = True
    finally:  # a call that failed may still have had its effect
        if not update_ended:
            with contextlib.suppress(EngineFault):
                await engine.end_weight_update()
        await engine.resume_generation()
    return time.monotonic() - began


class DraftSwap:
    """Loads and confirms drafts in one engine.

    Invariants: one object lives no longer than one engine start, because checksums are comparable only within one
    start. Meanwhile nothing else changes the engine's draft.
    """

    def __init__(self, engine: SGLangClient, checksums: dict[str, str] | None = None) -> None:
        """``checksums`` maps the digest of a file to the checksum that the file is known to give in this start."""
        self._engine = engine
        self._checksums = dict(checksums or {})
        self._observed: tuple[int, DraftReport] | None = None  # version and report of the engine, read last
        self._confirmed: str | None = None
        self.paused = False
        """Whether this object has paused generation."""

    def has_confirmed(self, draft_digest: str) -> bool:
        """Whether the engine was seen to hold this draft and was not changed since."""
        return self._confirmed == draft_digest

    async def checksum(self, version: int) -> str:
        """The engine's checksum of the draft ``version`` that it holds.

        The engine is asked once for each version: the answer costs it a pass over the draft.
        """
        return (await self.report(version)).checksum

    async def report(self, version: int) -> DraftReport:
        """The engine's report of the draft ``version`` that it holds. Asked once, as in :meth:`checksum`."""
        if self._observed is None or self._observed[0] != version:
            self._observed = version, await self._engine.draft_report()
        return self._observed[1]

    async def remember_checksum(self, draft: DraftFile) -> None:
        """Remember the checksum of ``draft``, unless the engine reports that it holds another file."""
        report = await self.report(draft.version)
        if report.is_of_start or report.is_of(draft.digest):
            self._checksums[draft.digest] = report.checksum

    async def load(self, draft: DraftFile) -> float:
        """Load ``draft`` in a pause and confirm the load. Returns the seconds for which generation was paused.

        Raises :class:`EngineFault` when a call fails, or the engine does not hold ``draft`` afterwards. The engine may
        then hold either draft.
        """
        known = self._checksums.get(draft.digest)
        # Asked before the pause: an engine without a draft would call the update a success, and take the version over.
        if self._observed is None:
            await self._engine.draft_report()
        self._forget_observation()
        self.paused = True
        try:
            pause_seconds = await load_in_pause(self._engine, draft)
        finally:
            self.paused = False
        version, report = await self._engine.draft_version(), await self._engine.draft_report()
        if version != draft.version:
            raise EngineFault(f"the engine holds version {version} after the update to version {draft.version}")
        if not report.is_of(draft.digest):
            asked = draft.digest[:SHORT]
            raise EngineFault(
                f"version {draft.version}: the engine holds the draft {report}, and {asked} was asked for"
            )
        if known is not None and report.checksum != known:
            raise EngineFault(
                f"version {draft.version}: the engine's checksum is not the one that this file gave before"
            )
        self._checksums[draft.digest] = report.checksum
        self._observed, self._confirmed = (version, report), draft.digest
        return pause_seconds

    async def holds(self, draft: DraftFile) -> bool:
        """Whether the engine reports that it holds ``draft``. The checksum of ``draft`` must be known."""
        self._forget_observation()
        if await self._engine.draft_version() != draft.version:
            return False
        report = await self.report(draft.version)
        if not (report.is_of_start or report.is_of(draft.digest)):
            return False
        if report.checksum != self._checksums.get(draft.digest):
            return False
        self._confirmed = draft.digest
        return True

    async def restore(self, draft: DraftFile) -> None:
        """Load ``draft`` again unless the engine still holds it. Raises :class:`EngineFault`, as :meth:`load` does."""
        if not await self.holds(draft):
            await self.load(draft)

    async def load_or_restore(self, draft: DraftFile, fallback: DraftFile) -> float:
        """Load and confirm ``draft``. When that fails, restore ``fallback``, whose checksum must be known.

        Returns: seconds for which generation was paused.

        Raises:
            EngineFault: the engine does not hold ``draft``. The message says so if restoring ``fallback`` failed too.
        """
        try:
            return await self.load(draft)
        except EngineFault as cause:
            try:
                await self.restore(fallback)
            except EngineFault as error:
                text = f"{cause}; and version {fallback.version} could not be restored: {error}"
                raise type(cause)(text) from cause
            raise

    def _forget_observation(self) -> None:
        self._observed = self._confirmed = None
