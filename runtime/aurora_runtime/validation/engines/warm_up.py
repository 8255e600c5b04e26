"""The answers that an arm gives before it is measured, outside the clock. They are discarded.

With an adaptive shape, the speculation controller does not propose from a draft before it has tried the draft, and how
soon it tries is left to chance. A pod learns this once and then serves for hours. So the first batches of a draft that
is new to an engine are not how it serves. In one measurement the first batch of a candidate ran at 0.81 of the active
draft's speed, and the next four at 1.20 to 1.38. Such a first round widens the interval by more than the next rounds
narrow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.evidence_records import Arm
from aurora_runtime.validation.engines.load_client import LoadClient
from aurora_runtime.validation.rounds.measurement_plan import DRAFT_ARMS, MeasurementPlan

ENGINE_TOKENS: Final = 24
"""Length of the answer that warms an engine up."""
SWAP_TOKENS: Final = 8
"""The same after a swap to a draft that the engine knows. Only what is derived from the draft's weights is made again.
Short, because a round has two or three swaps."""
DRAFT_TOKENS: Final = 256
"""Most tokens of answers with which the controller gets to know a draft."""


@dataclass(frozen=True)
class WarmUp:
    """The answers to discard.

    Attributes:
        prompts: those that a draft answers when it is new to an engine.
        tokens: the length of such an answer.
        concurrency: how many of them are answered at a time.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: int
    concurrency: int

    @classmethod
    def of(
        cls, prompts: Sequence[tuple[int, ...]], plan: MeasurementPlan, draft: DraftSpec, max_new_tokens: int
    ) -> Self:
        """The warm-up of a measurement. ``prompts`` are the plan's, of which the last are the oldest."""
        if not draft.adaptive:
            return cls((prompts[-1],), ENGINE_TOKENS, 1)
        tokens = min(max_new_tokens, DRAFT_TOKENS)
        oldest = tuple(prompts[-math.ceil(DRAFT_TOKENS / tokens) :])
        return cls(oldest, tokens, min(len(oldest), max(plan.policy.concurrencies)))

    async def answer(self, client: LoadClient, arm: Arm, *, is_known: bool) -> bool:
        """Warm the engine up for ``arm``. Returns whether every request was answered.

        Args:
            is_known: whether this start of the engine was warmed up for ``arm`` before.
        """
        if arm in DRAFT_ARMS and not is_known:
            return not (await client.batch(self.prompts, self.concurrency, self.tokens)).failures
        return await client.answer(self.prompts[-1], SWAP_TOKENS if is_known else ENGINE_TOKENS) is not None
