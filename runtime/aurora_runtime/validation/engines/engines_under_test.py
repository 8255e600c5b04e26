"""The interface between a measurement and the engines that it measures.

Why: a Job's own engines and the engine of a lent replica are measured by the same rounds and judged by the same gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from aurora_protocol.evidence_records import Arm
from aurora_runtime.validation.engines.load_client import BatchResult

WARM_UP_TOKENS: Final = 24
"""Length of the discarded answer after an engine's start."""
SWAP_WARM_UP_TOKENS: Final = 8
"""The same after a swap. The engine is warm, and only what it derives from the draft's weights is made again. A round
has a swap or two, so a longer answer would take a noticeable part of the measurement."""


class EnginesUnderTest(Protocol):
    """One or more engines that together can run every arm."""

    async def prepare(self, arm: Arm) -> None:
        """Load ``arm``'s draft, warm the engine up and empty its prefix cache."""

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` (token ids) with ``arm``, with ``concurrency`` requests in flight."""

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the target's log-probabilities of two next tokens after ``prefix``."""
