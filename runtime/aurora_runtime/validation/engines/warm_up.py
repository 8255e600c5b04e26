"""The answers that an arm gives before it is measured, outside the clock. They are discarded.

With an adaptive shape, the speculation controller proposes from a source only once it has tried the source. How soon it
tries is left to chance. A pod learns this once and then serves for hours, so a draft's first hundred rounds are not how
it serves. A first batch that is measured in them widens the interval by more than the next ones narrow it
(docs/explanation/gate-statistics.md).

Invariants: one request is in flight at a time, because the controller learns from rounds, and a round of several
requests counts once. No request follows a failed one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.validation.engines.load_client import Answer, BatchResult, LoadClient

ENGINE_TOKENS: Final = 24
"""Length of the answer that warms an engine up."""
SWAP_TOKENS: Final = 8
"""The same after a swap to a draft that the engine knows. Only what is derived from the draft's weights is made again.
Short, because a round has two or three swaps."""
DRAFT_TOKENS: Final = 256
"""Tokens of the answers with which the controller gets to know a draft."""
DRAFT_PROMPTS: Final = 16
"""Most prompts that are answered for that, because answers may end early."""


@dataclass(frozen=True)
class WarmUp:
    """The prompts for a warm-up, oldest first, and how much a draft answers that is new to an engine."""

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    draft_tokens: int

    @classmethod
    def of(cls, prompts: Sequence[tuple[int, ...]], draft: DraftSpec, max_new_tokens: int) -> Self:
        """The warm-up of a measurement on ``prompts``, of which the last are the oldest."""
        oldest = tuple(reversed(prompts[-DRAFT_PROMPTS:]))
        if not draft.adaptive:
            return cls(oldest[:1], ENGINE_TOKENS, ENGINE_TOKENS)
        return cls(oldest, max_new_tokens, DRAFT_TOKENS)

    async def answer_once(self, client: LoadClient, tokens: int) -> BatchResult:
        """Warm the engine up with one answer of at most ``tokens``."""
        return await client.batch(self.prompts[:1], 1, tokens)

    async def learn_draft(self, client: LoadClient, may_continue: Callable[[], bool]) -> BatchResult:
        """Let the controller get to know the draft that the engine holds.

        Ends when enough tokens were answered, after the last prompt, or at the first failure.

        Args:
            may_continue: asked before each request. False ends the warm-up.
        """
        answers: list[Answer | None] = []
        tokens, seconds, unreached = 0, 0.0, 0
        for prompt in self.prompts:
            if tokens >= self.draft_tokens or not may_continue():
                break
            result = await client.batch((prompt,), 1, min(self.max_new_tokens, self.draft_tokens - tokens))
            answers += result.answers
            tokens += result.tokens
            seconds += result.seconds
            unreached += result.unreached
            if result.failures:
                break
        return BatchResult(tuple(answers), seconds, unreached)
