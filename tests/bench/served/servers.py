"""The servers under measurement: one without speculation, one per NGRAM arm, one per shape of the drafts' rounds.

All servers run side by side, and only the one that is measured is busy. A server of drafts swaps to each draft in turn.

Invariants:

- All servers are built from one spec and differ in their speculation only.
- A draft is measured only after the engine's checksum has shown that the draft is loaded.
- NGRAM's server is never flushed. SGLang's flush would empty NGRAM's corpus too (``Scheduler.flush_cache`` calls
  ``clear_cache_pool``, 0.5.23), and in production NGRAM would keep its corpus.
- Every server that was started is stopped on exit.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from tests.bench.served.engine_set import EngineSet
from tests.bench.stream_timing import StepTiming, time_stream

from aurora_runtime.engine.draft_swap import load_in_pause
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.load_client import BatchResult
from aurora_runtime.validation.store_reads import FetchedDraft

OFF: Final = "off"
"""The name of the server without speculation."""
DRAFT: Final = "draft"
"""The name of the server that takes all drafts."""
START_TIMEOUT_SECONDS: Final = 480.0
FEED_CONCURRENCY: Final = 8
WARMUP_TOKENS: Final = 32


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: a server by its name, and the draft that this server must have loaded."""

    name: str
    server: str
    draft: FetchedDraft | None = None


@dataclass
class Servers:
    """Starts a server per entry of ``speculation``. Use it as an async context manager.

    Attributes:
        warmup_texts: requests of the domain of which some are answered before each batch.
        max_new_tokens: largest number of tokens of an answer.
    """

    engines: EngineSet
    speculation: Mapping[str, Eagle3 | Ngram | None]
    warmup_texts: Sequence[str]
    max_new_tokens: int
    _checksums: dict[Arm, str] = field(default_factory=dict)
    _loaded: dict[str, FetchedDraft] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        try:
            for name, speculation in self.speculation.items():
                # One after the other: servers that start together take longer on two cores, and may time out.
                self.engines.start(name, speculation)
                await self.engines.wait_ready(name, time.monotonic() + START_TIMEOUT_SECONDS)
        except BaseException:
            await self.engines.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.engines.close()

    async def feed(self, names: Sequence[str], prompts: Sequence[Sequence[int]]) -> None:
        """Have the servers ``names`` answer ``prompts``, the same requests that the drafts learned from.

        Raises:
            MeasurementError: a request failed.
        """
        for name in names:  # in turn: servers that answer at once take each other's time, and the controller learns it
            result = await self.engines.client(name).batch(prompts, FEED_CONCURRENCY, self.max_new_tokens)
            if result.failures:
                raise MeasurementError(f"{name}: {result.failures} requests failed while it answered the traffic")

    async def learn_checksums(self, arms: Sequence[Arm]) -> None:
        """Load every arm's draft once and remember its checksum.

        Raises:
            EngineFault: a swap failed, or two drafts of one server have the same checksum.
        """
        for arm in arms:
            if arm.draft is not None:
                await self._swap(arm.server, arm.draft)
                self._checksums[arm] = await self.engines.admin(arm.server).draft_checksum()
        for server in {arm.server for arm in self._checksums}:
            by_draft = {arm.draft: checksum for arm, checksum in self._checksums.items() if arm.server == server}
            if len({*by_draft.values()}) < len(by_draft):
                raise EngineFault("two drafts have one checksum, so a swap between them cannot be confirmed")

    async def prepare(self, arm: Arm, concurrency: int, first_warmup: int = 0) -> list[StepTiming]:
        """Load the arm's draft and answer ``concurrency`` warm-up requests at once, outside of any batch.

        ``first_warmup`` is the place of the first one in :attr:`warmup_texts`, which begin again at their end.

        The prefix cache then contains the domain's common prefix, computed under the arm's draft, and nothing else that
        the next batch could use. The timings of the warm-up streams give the cost of a round.

        Raises:
            EngineFault: the engine does not hold the draft after its swap.
        """
        if arm.draft is not None and arm.draft != self._loaded.get(arm.server):
            await self._swap(arm.server, arm.draft)
            if await self.engines.admin(arm.server).draft_checksum() != self._checksums[arm]:
                raise EngineFault(f"the engine does not hold draft {arm.draft.version} after its swap")
        port = urlsplit(self.engines.url(arm.server)).port
        assert port is not None
        texts = list(itertools.islice(itertools.cycle(self.warmup_texts), first_warmup, first_warmup + concurrency))
        return await asyncio.gather(*(asyncio.to_thread(time_stream, port, text, WARMUP_TOKENS) for text in texts))

    async def run(self, arm: Arm, prompts: Sequence[Sequence[int]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` with ``concurrency`` requests in flight.

        Raises:
            MeasurementError: the server died. A dead server's figures say nothing about its speed.
        """
        result = await self.engines.client(arm.server).batch(prompts, concurrency, self.max_new_tokens)
        self.engines.check(arm.server)
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """The logit margin between two tokens after ``prefix``, by the server without speculation."""
        return await self.engines.client(OFF).margin(prefix, one, other)

    async def _swap(self, server: str, draft: FetchedDraft) -> None:
        """Load ``draft`` and drop the cached prefixes.

        The cache holds keys of the previous draft, and the same prompts come again.
        """
        engine = self.engines.admin(server)
        await load_in_pause(engine, draft)
        await engine.flush_prefix_cache()
        self._loaded[server] = draft
