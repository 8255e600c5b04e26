"""Loads a draft file into a running engine and confirms by version and checksum that the engine took it.

The agent's swaps, its trial drafts and the validator's engines all load drafts through this module.

Invariants: a pause that may have begun is always ended, whatever an answer said. A load succeeds only when the engine
reports the draft's version and the right checksum. SGLang's answer to the update proves nothing, because SGLang reports
success even for a file that it could not load.

Two rules check the checksum. A file that was loaded before in this engine start must give the same checksum again. A
file that is new to this engine start must change the checksum.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Protocol

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


async def load_in_pause(engine: SGLangClient, weights: Path, version: int) -> float:
    """Load the draft in the file ``weights`` while generation is paused, and call it ``version``.

    Running requests keep their state and continue afterwards. Success means only that the engine reported success:
    :class:`DraftSwap` confirms the load.

    Returns: seconds for which generation was paused.
    """
    ranks = await engine.tensor_parallel_ranks()  # before the pause: the engine may take a while to answer this
    began = time.monotonic()
    update_ended = False
    try:
        await engine.pause_generation()
        await engine.begin_weight_update()
        await engine.update_draft(weights, version, ranks)
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
        self._observed: tuple[int, str] | None = None  # version and checksum that the engine reported last
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
        if self._observed is None or self._observed[0] != version:
            self._observed = version, await self._engine.draft_checksum()
        return self._observed[1]

    async def remember_checksum(self, draft: DraftFile) -> None:
        """Remember the checksum of ``draft``, which the engine holds."""
        self._checksums[draft.digest] = await self.checksum(draft.version)

    async def load(self, draft: DraftFile) -> float:
        """Load ``draft`` in a pause and confirm the load. Returns the seconds for which generation was paused.

        Raises :class:`EngineFault` when a call fails or the engine does not hold ``draft`` afterwards. The engine may
        then hold either draft.
        """
        known = self._checksums.get(draft.digest)
        before = self._observed[1] if self._observed is not None else await self._engine.draft_checksum()
        self._forget_observation()
        self.paused = True
        try:
            pause_seconds = await load_in_pause(self._engine, draft.weights, draft.version)
        finally:
            self.paused = False
        version, checksum = await self._engine.draft_version(), await self._engine.draft_checksum()
        if version != draft.version:
            raise EngineFault(f"the engine holds version {version} after the update to version {draft.version}")
        if known is not None and checksum != known:
            raise EngineFault(
                f"version {draft.version}: the engine's checksum is not the one that this file gave before"
            )
        if known is None and checksum == before:
            raise EngineFault(f"version {draft.version}: the engine did not load the file, its checksum did not change")
        self._checksums[draft.digest] = checksum
        self._observed, self._confirmed = (version, checksum), draft.digest
        return pause_seconds

    async def holds(self, draft: DraftFile) -> bool:
        """Whether the engine reports that it holds ``draft``. The checksum of ``draft`` must be known."""
        self._forget_observation()
        if await self._engine.draft_version() != draft.version:
            return False
        if await self.checksum(draft.version) != self._checksums.get(draft.digest):
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
