"""The engine under measurement: loads an arm's draft, warms the arm up, and answers batches with it.

One engine runs off and both drafts, on a Job's own engine as on that of a lent replica. Each request says whether it
may be speculated for, and the drafts are swapped. Who starts and swaps the engine is an :class:`EngineHost`.

An arm answers some prompts before it is measured, outside the clock. With an adaptive shape, the speculation controller
proposes from a source only once it has tried the source, and learns what a round costs for each number of requests at a
time. A pod learns this once and then serves for hours. A batch that is measured meanwhile widens the interval by more
than the next ones narrow it (docs/explanation/gate-statistics.md), and the draft that is measured first would pay.

Invariants: while the controller gets to know a draft, one request is in flight at a time, because a round of several
requests counts once. No request follows a failed one in a warm-up. No measured request is traced, and lookup answers no
other request from it, so no round teaches lookup the answers of the next one.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from aurora_protocol.evidence_records import Arm
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.load_client import BatchResult, LoadClient

log = logging.getLogger(__name__)

DRAFT_ARMS: Final = (Arm.ACTIVE, Arm.CANDIDATE)
ENGINE_TOKENS: Final = 24
"""Length of the answer that warms up an arm without a controller that must get to know it."""
SWAP_TOKENS: Final = 8
"""The same after a swap to a draft that the engine knows. Short, because a round has two or three swaps."""
DRAFT_TOKENS: Final = 256
"""Tokens of the answers with which the controller gets to know a draft."""
DRAFT_PROMPTS: Final = 16
"""Most prompts that are answered for that, because answers may end early."""
BATCH_TOKENS: Final = 24
"""Tokens of each answer of a batch at a declared concurrency. The controller times off four times before it tries
another arm, and a round that a prefill interrupts does not count."""
LOOKUP_SECONDS: Final = 60.0
"""Time limit for the conversations with which lookup begins."""
LOOKUP_CONCURRENCY: Final = 4
LOOKUP_TOKENS: Final = 1
"""Lookup takes a request's text at the latest when the request ends."""
MEASURED: Final[Mapping[str, Any]] = {"trace": False}
"""What a measured request asks for (``aurora_runtime.request_wish``)."""
HELD_OFF: Final[Mapping[str, Any]] = {"trace": False, "speculate": False}
SHARED: Final[Mapping[str, Any]] = {"speculate": False}
"""What a request asks for from which lookup may answer others. The Job's engine traces nothing."""


class EngineHost(Protocol):
    """Starts the engine and swaps its draft."""

    async def hold(self, arm: Arm) -> bool:
        """Make the engine hold ``arm``'s draft, with an empty prefix cache. Off needs no certain draft.

        Returns whether the draft was swapped. Raises :class:`OutOfTime` when the measurement's time is over.
        """

    async def confirm(self, arm: Arm, result: BatchResult) -> None:
        """Raise :class:`MeasurementError` unless the engine that gave ``result`` still runs and belongs to us."""

    def client(self, arm: Arm, wish: Mapping[str, Any], deadline: float) -> LoadClient:
        """A client for answers of ``arm``."""


@dataclass
class MeasuredEngine:
    """``deadline`` is on :func:`time.monotonic`, in seconds."""

    host: EngineHost
    prompts: Sequence[tuple[int, ...]]
    """The measured prompts, newest first. The oldest warm the arms up."""
    concurrencies: Sequence[int]
    max_new_tokens: int
    deadline: float
    learns: bool = True
    """Whether a controller must get to know each draft. No controller chooses the rounds of a fixed shape."""
    _known: set[Arm] = field(default_factory=set, init=False)
    """The arms that were warmed up at all."""

    async def fill_lookup(self, conversations: Sequence[tuple[int, ...]]) -> None:
        """Have the engine process ``conversations``, so that lookup knows about as much as in a pod."""
        client = self.host.client(Arm.OFF, SHARED, self.deadline)
        until, processed = time.monotonic() + LOOKUP_SECONDS, 0
        for first in range(0, len(conversations), LOOKUP_CONCURRENCY):
            if time.monotonic() > until:
                break
            some = conversations[first : first + LOOKUP_CONCURRENCY]
            result = await client.batch(some, len(some), LOOKUP_TOKENS)
            await self.host.confirm(Arm.OFF, result)
            processed += len(some) - result.failures
        log.info("lookup begins with %d of %d recorded conversations", processed, len(conversations))

    async def prepare(self, arm: Arm) -> None:
        """Load ``arm``'s draft, warm the arm up where needed, and empty the prefix cache."""
        swapped = await self.host.hold(arm)
        if swapped or arm not in self._known:
            await self._warm_up(arm)
            await self.host.hold(arm)  # empties the prefix cache, which the warm-up filled

    async def _warm_up(self, arm: Arm) -> None:
        """Ends at the first failure. The rounds judge a draft on which only some requests fail."""
        oldest = tuple(reversed(self.prompts[-DRAFT_PROMPTS:]))
        if arm in self._known:
            alone, most_tokens, together = oldest[:1], SWAP_TOKENS, []
        else:
            learns = self.learns and arm in DRAFT_ARMS
            alone, most_tokens = (oldest, DRAFT_TOKENS) if learns else (oldest[:1], ENGINE_TOKENS)
            together = [tuple(itertools.islice(itertools.cycle(oldest), c)) for c in self.concurrencies if c > 1]
        self._known.add(arm)
        client, answered = self._client(arm), 0
        for prompts in [*((prompt,) for prompt in alone), *together]:
            tokens = most_tokens - answered if len(prompts) == 1 else BATCH_TOKENS
            if tokens <= 0 or time.monotonic() > self.deadline:
                continue
            result = await client.batch(prompts, len(prompts), min(self.max_new_tokens, tokens))
            answered += result.tokens
            if result.failures:
                await self.host.confirm(arm, result)
                if not answered:
                    raise EngineFault(f"a warm-up request failed on {arm}: see the engine's log")
                return

    def _client(self, arm: Arm) -> LoadClient:
        return self.host.client(arm, HELD_OFF if arm is Arm.OFF else MEASURED, self.deadline)

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` (token ids) with ``arm``, with ``concurrency`` requests in flight.

        Raises :class:`MeasurementError` when the engine died or was lost, and :class:`OutOfTime` at the deadline.
        """
        result = await self._client(arm).batch(prompts, concurrency, self.max_new_tokens)
        await self.host.confirm(arm, result)
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the target's log-probabilities of two next tokens after ``prefix``."""
        return await self._client(Arm.OFF).margin(prefix, one, other)
