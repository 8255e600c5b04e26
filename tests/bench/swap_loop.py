"""Swaps a running server's draft back and forth while the server answers requests.

Invariant: a swap counts only if answers were in flight when the swap began, and if the engine was confirmed to hold the
new draft.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.draft_update import LOADER
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.store_reads import FetchedDraft

UNTRAINED, TRAINED = 0, 1
"""The versions of the two drafts, which are also their indices among the loop's drafts."""
SERVER_ARGUMENTS = ("--weight-version", str(UNTRAINED), "--custom-weight-loader", LOADER)
"""The flags that a server needs for swaps, besides its untrained draft."""
SECONDS_BETWEEN_SWAPS = 1.0
"""Long enough for answers to make progress under either draft."""


class SwapLoop:
    """Swaps the two drafts of one lineage on an engine that started with the first.

    Args:
        folders: the untrained draft and the trained one.
    """

    def __init__(self, engine: SGLangClient, folders: Sequence[Path]) -> None:
        self._swap = DraftSwap(engine)
        self._drafts = [FetchedDraft(folder, version) for version, folder in enumerate(folders)]
        self._current = UNTRAINED
        self.pauses: dict[int, list[float]] = {}
        """The pause of each swap in seconds, by the concurrency of the answers in flight."""
        self.failures: list[str] = []

    async def learn_checksums(self) -> None:
        """Load each draft once, so that its checksum is known. The untrained draft comes last.

        Raises:
            EngineFault: a swap failed, or both drafts have the same checksum.
        """
        await self._swap.remember_checksum(self._drafts[UNTRAINED])
        for version in (TRAINED, UNTRAINED):
            await self._swap_to(version)

    async def swap_until(self, done: asyncio.Future[Any], concurrency: int) -> None:
        """Swap back and forth until ``done``, and end with the trained draft. Stops at the first failure."""
        pauses = self.pauses.setdefault(concurrency, [])
        while not done.done() or self._current != TRAINED:
            in_flight = not done.done()
            try:
                pause_seconds = await self._swap_to(TRAINED if self._current == UNTRAINED else UNTRAINED)
            except EngineFault as error:
                self.failures.append(str(error))
                return
            if in_flight:
                pauses.append(pause_seconds)
            await asyncio.wait([done], timeout=SECONDS_BETWEEN_SWAPS)

    async def check_trained(self) -> None:
        """Record a failure unless the engine still holds the trained draft."""
        if not await self._swap.holds(self._drafts[TRAINED]):
            self.failures.append("the engine does not hold the trained draft")

    async def _swap_to(self, version: int) -> float:
        """Swap to draft ``version``, confirm the swap, and return the pause in seconds."""
        pause_seconds = await self._swap.load(self._drafts[version])
        self._current = version
        return pause_seconds
