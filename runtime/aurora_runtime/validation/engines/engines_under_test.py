"""The interface between a measurement and the engines that it measures.

Why: a Job's own engines and the engine of a lent replica are measured by the same rounds and judged by the same gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from aurora_protocol.evidence_records import Arm
from aurora_runtime.validation.engines.load_client import BatchResult


class EnginesUnderTest(Protocol):
    """One or more engines that together can run every arm."""

    async def prepare(self, arm: Arm) -> None:
        """Load ``arm``'s draft, warm the engine up and empty its prefix cache.

        Raises :class:`OutOfTime` when the measurement's time is over.
        """

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` (token ids) with ``arm``, with ``concurrency`` requests in flight.

        Raises :class:`OutOfTime` when the measurement's time is over.
        """

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the target's log-probabilities of two next tokens after ``prefix``."""
