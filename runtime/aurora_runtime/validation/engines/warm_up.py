"""The answers that an arm gives before it is measured, outside the clock. They are discarded.

With an adaptive shape, the speculation controller proposes from a source only once it has tried the source. How soon it
tries is left to chance. A pod learns this once and then serves for hours, so a draft's first hundred rounds are not how
it serves. A first batch that is measured in them widens the interval by more than the next ones narrow it
(docs/explanation/gate-statistics.md).

The controller learns what a round costs anew for each number of requests at a time: it first runs rounds without
proposals, and then tries its arms. The draft that is measured first would pay for this, and the other draft, on the
same engine, would not. So each arm also answers one short batch at each declared concurrency.

Invariants: while the controller gets to know a draft, one request is in flight at a time, because the controller learns
from rounds, and a round of several requests counts once. No request or batch follows a failed one.
"""

from __future__ import annotations

import itertools
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
BATCH_TOKENS: Final = 24
"""Tokens of each answer of a batch at a declared concurrency. The controller times off four times before it tries
another arm, and a round that a prefill interrupts does not count."""


@dataclass(frozen=True)
class WarmUp:
    """The prompts for a warm-up, oldest first, and how much an arm answers that is new to an engine."""

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    draft_tokens: int
    concurrencies: tuple[int, ...] = ()
    """The declared concurrencies at which an arm answers a batch."""

    @classmethod
    def of(
        cls,
        prompts: Sequence[tuple[int, ...]],
        draft: DraftSpec,
        max_new_tokens: int,
        concurrencies: Sequence[int] = (),
    ) -> Self:
        """The warm-up of a measurement on ``prompts``, of which the last are the oldest."""
        oldest, above_one = tuple(reversed(prompts[-DRAFT_PROMPTS:])), tuple(c for c in concurrencies if c > 1)
        if not draft.adaptive:
            return cls(oldest[:1], ENGINE_TOKENS, ENGINE_TOKENS, above_one)
        return cls(oldest, max_new_tokens, DRAFT_TOKENS, above_one)

    async def first_time(self, client: LoadClient, *, drafts: bool, may_continue: Callable[[], bool]) -> BatchResult:
        """All that an arm answers before it is measured for the first time on a start of an engine.

        Args:
            drafts: whether the arm is one of the two drafts.
            may_continue: asked before each request or batch. False ends the warm-up.
        """
        if drafts:
            result = await self.learn_draft(client, may_continue)
        else:
            result = await self.answer_once(client, ENGINE_TOKENS)
        for concurrency in self.concurrencies:
            if result.failures or not may_continue():
                break
            prompts = tuple(itertools.islice(itertools.cycle(self.prompts), concurrency))
            batch = await client.batch(prompts, concurrency, min(self.max_new_tokens, BATCH_TOKENS))
            result = BatchResult(
                result.answers + batch.answers, result.seconds + batch.seconds, result.unreached + batch.unreached
            )
        return result

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
