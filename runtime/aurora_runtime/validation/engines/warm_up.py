"""The answers that an arm gives before it is measured, outside the clock. They are discarded.

With an adaptive shape, the speculation controller proposes from a source only once it has tried the source. How soon it
tries is left to chance. A pod learns this once and then serves for hours, so a draft's first hundred rounds are not how
it serves. A first batch that is measured in them widens the interval by more than the next ones narrow it
(docs/explanation/gate-statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.evidence_records import Arm
from aurora_runtime.validation.engines.load_client import LoadClient
from aurora_runtime.validation.rounds.measurement_plan import DRAFT_ARMS

ENGINE_TOKENS: Final = 24
"""Length of the answer that warms an engine up."""
SWAP_TOKENS: Final = 8
"""The same after a swap to a draft that the engine knows. Only what is derived from the draft's weights is made again.
Short, because a round has two or three swaps."""
DRAFT_TOKENS: Final = 256
"""Tokens of the answers with which the controller gets to know a draft, if no answer ends early."""


@dataclass(frozen=True)
class WarmUp:
    """The prompts that a draft answers when it is new to an engine, and the length of an answer."""

    prompts: tuple[tuple[int, ...], ...]
    tokens: int

    @classmethod
    def of(cls, prompts: Sequence[tuple[int, ...]], draft: DraftSpec, max_new_tokens: int) -> Self:
        """The warm-up of a measurement on ``prompts``, of which the last are the oldest."""
        if not draft.adaptive:
            return cls((prompts[-1],), ENGINE_TOKENS)
        tokens = min(max_new_tokens, DRAFT_TOKENS)
        return cls(tuple(prompts[-math.ceil(DRAFT_TOKENS / tokens) :]), tokens)

    async def answer(self, client: LoadClient, arm: Arm, *, is_known: bool) -> bool:
        """Warm the engine up for ``arm``. Returns whether any request was answered.

        Answers follow each other, because the controller learns from rounds, and a round of several requests counts
        once. A draft on which some requests fail is left to the rounds, where the failures make a verdict.

        Args:
            is_known: whether this start of the engine was warmed up for ``arm`` before.
        """
        prompts, tokens = self.prompts[-1:], SWAP_TOKENS if is_known else ENGINE_TOKENS
        if arm in DRAFT_ARMS and not is_known:
            prompts, tokens = self.prompts, self.tokens
        return (await client.batch(prompts, 1, tokens)).failures < len(prompts)
