"""Swaps a running server's draft back and forth while the server answers: the hardest test of swaps on requests.

Invariant: a swap counts only when answers were in flight as it began, and when the engine's checksum has shown that the
engine holds the draft it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurora_runtime.engine.draft_check import WEIGHTS
from aurora_runtime.engine.draft_swap import load_in_pause
from aurora_runtime.engine.path_payload import LOADER
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault

UNTRAINED, TRAINED = 0, 1
"""The versions of the two drafts, which are also their places in :attr:`SwapLoop.drafts`."""
SERVER_ARGUMENTS = ("--weight-version", str(UNTRAINED), "--custom-weight-loader", LOADER)
"""The flags that a server needs for swaps, besides its untrained draft."""
SECONDS_BETWEEN_SWAPS = 1.0
"""Long enough for answers to make progress under either draft."""


@dataclass
class SwapLoop:
    """Swaps the two drafts of one lineage on an engine that started with the first."""

    engine: SGLangClient
    drafts: Sequence[Path]
    current: int = UNTRAINED
    pauses: dict[int, list[float]] = field(default_factory=dict)
    """The pause of each swap in seconds, by the concurrency of the answers in flight."""
    failures: list[str] = field(default_factory=list)
    _checksums: dict[int, str] = field(default_factory=dict)

    async def learn_checksums(self) -> None:
        """Load each draft once and remember its checksum; end with the untrained draft.

        Raises:
            EngineFault: a swap failed, or both drafts have the same checksum.
        """
        for version in (UNTRAINED, TRAINED):
            await load_in_pause(self.engine, self.drafts[version] / WEIGHTS, version)
            self._checksums[version] = await self.engine.draft_checksum()
        if len({*self._checksums.values()}) != 2:
            raise EngineFault("both drafts have the same checksum, so a swap between them cannot be confirmed")
        await self._swap_to(UNTRAINED)

    async def swap_until(self, done: asyncio.Future[Any], concurrency: int) -> None:
        """Swap back and forth until ``done``, and end with the trained draft. Stops at the first failure."""
        pauses = self.pauses.setdefault(concurrency, [])
        while not done.done() or self.current != TRAINED:
            in_flight = not done.done()
            try:
                pause = await self._swap_to(TRAINED if self.current == UNTRAINED else UNTRAINED)
            except EngineFault as error:
                self.failures.append(str(error))
                return
            if in_flight:
                pauses.append(pause)
            await asyncio.wait([done], timeout=SECONDS_BETWEEN_SWAPS)

    async def check_trained(self) -> None:
        """Record a failure unless the engine holds the trained draft."""
        if await self.engine.draft_checksum() != self._checksums[TRAINED]:
            self.failures.append("the engine does not hold the trained draft")

    async def _swap_to(self, version: int) -> float:
        """Swap to draft ``version`` and confirm it; returns the pause in seconds."""
        pause = await load_in_pause(self.engine, self.drafts[version] / WEIGHTS, version)
        if await self.engine.draft_checksum() != self._checksums[version]:
            raise EngineFault(f"the engine does not hold draft {version} after its swap")
        self.current = version
        return pause
