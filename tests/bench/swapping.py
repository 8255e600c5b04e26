"""A running server whose draft goes back and forth while it answers: the most that swaps can do to its requests.

Invariant: a swap counts only when the engine was seen, by checksum, to hold the draft that it was given, and only when
answers were under way as it began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aurora_runtime.engine.draft_check import WEIGHTS
from aurora_runtime.engine.path_payload import LOADER
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault

UNTRAINED, TRAINED = 0, 1
"""The drafts' versions, and their places among :attr:`SwappingEngine.drafts`."""
SERVER_ARGUMENTS = ("--weight-version", str(UNTRAINED), "--custom-weight-loader", LOADER)
"""What a server needs for a swap, besides the untrained draft itself."""
SERVING_S = 1.0
"""Between two swaps, so that answers go on under either draft."""


@dataclass
class SwappingEngine:
    """An engine that started with the first of two drafts of one lineage."""

    engine: SGLangClient
    drafts: Sequence[Path]
    current: int = UNTRAINED
    pauses: dict[int, list[float]] = field(default_factory=dict)
    """Seconds of each swap, by the concurrency of the answers under way."""
    failures: list[str] = field(default_factory=list)
    _checksums: dict[int, str] = field(default_factory=dict)

    async def learn_checksums(self) -> None:
        """Load both drafts once, to know them again. Raises :class:`EngineFault` when the engine did not."""
        for version in (UNTRAINED, TRAINED):
            await self.engine.swap(self.drafts[version] / WEIGHTS, version)
            self._checksums[version] = await self.engine.checksum()
        if len({*self._checksums.values()}) != 2:
            raise EngineFault("two drafts gave one checksum")
        await self._go_to(UNTRAINED)

    async def swap_until(self, done: asyncio.Future[Any], concurrency: int) -> None:
        """Swap until ``done``, and end with the trained draft; stops at the first failure."""
        pauses = self.pauses.setdefault(concurrency, [])
        while not done.done() or self.current != TRAINED:
            under_way = not done.done()
            try:
                pause = await self._go_to(TRAINED if self.current == UNTRAINED else UNTRAINED)
            except EngineFault as error:
                self.failures.append(str(error))
                return
            if under_way:
                pauses.append(pause)
            await asyncio.wait([done], timeout=SERVING_S)

    async def check_trained(self) -> None:
        """Count a failure unless the engine holds the trained draft."""
        if await self.engine.checksum() != self._checksums[TRAINED]:
            self.failures.append("the engine does not hold the trained draft")

    async def _go_to(self, version: int) -> float:
        pause = await self.engine.swap(self.drafts[version] / WEIGHTS, version)
        if await self.engine.checksum() != self._checksums[version]:
            raise EngineFault(f"the engine does not hold draft {version} after its swap")
        self.current = version
        return pause
