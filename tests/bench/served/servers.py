"""The servers under measurement: one without speculation, one per NGRAM, one per shape of a round with swapped drafts.

All run side by side and sleep while another is asked. Invariants: they are built from one spec and differ in their
speculation alone; a draft is measured only after the engine's checksum said that it is loaded; NGRAM's server is never
flushed, because SGLang's flush empties its corpus too (``Scheduler.flush_cache`` calls ``clear_cache_pool``, 0.5.23),
and in production it would remember; whatever was started is stopped on exit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from tests.bench.stream_timing import StepTiming as Timing
from tests.bench.stream_timing import time_stream as generate

from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.load_client import BatchResult
from aurora_runtime.validation.server_set import EngineSet

OFF: Final = "off"
DRAFT: Final = "draft"
START_S: Final = 480.0
FEED_CONCURRENCY: Final = 8
WARM_TOKENS: Final = 32


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: a server by its name, and the draft that it must hold."""

    name: str
    server: str
    draft: FetchedDraft | None = None


@dataclass
class Servers:
    """Starts a server per entry of ``speculation``; an async context manager."""

    engines: EngineSet
    speculation: Mapping[str, Eagle3 | Ngram | None]
    warm_texts: Sequence[str]
    """Requests of the domain that are answered before each batch: as many as the highest concurrency."""
    max_new_tokens: int
    _checksums: dict[Arm, str] = field(default_factory=dict)
    _loaded: dict[str, FetchedDraft] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        try:
            for name, kind in self.speculation.items():
                # One after the other: several that start at a time take longer on two cores, and may time out.
                self.engines.start(name, kind)
                await self.engines.wait_ready(name, time.monotonic() + START_S)
        except BaseException:
            await self.engines.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.engines.close()

    async def feed(self, prompts: Sequence[Sequence[int]]) -> None:
        """Have every NGRAM server answer ``prompts``, as it would have in production while a draft learnt from them."""
        names = [name for name, kind in self.speculation.items() if isinstance(kind, Ngram)]
        fed = await asyncio.gather(
            *(self.engines.client(name).batch(prompts, FEED_CONCURRENCY, self.max_new_tokens) for name in names)
        )
        if failures := sum(result.failures for result in fed):
            raise MeasurementError(f"{failures} requests failed while NGRAM was fed")

    async def learn_checksums(self, arms: Sequence[Arm]) -> None:
        """Load every arm's draft once, to know it again. Raises :class:`EngineFault` when an engine cannot tell two."""
        for arm in arms:
            if arm.draft is not None:
                await self._swap(arm.server, arm.draft)
                self._checksums[arm] = await self.engines.admin(arm.server).checksum()
        for server in {arm.server for arm in self._checksums}:
            known = {arm.draft: checksum for arm, checksum in self._checksums.items() if arm.server == server}
            if len({*known.values()}) < len(known):
                raise EngineFault("two drafts gave one checksum")

    async def ready(self, arm: Arm, concurrency: int) -> list[Timing]:
        """Load the arm's draft and answer ``concurrency`` requests at a time, outside of any batch.

        So every batch finds the domain's common prefix in the cache, computed under the draft in force, and nothing
        else that it could use. The streams also tell what a round costs.
        """
        if arm.draft is not None and arm.draft != self._loaded.get(arm.server):
            await self._swap(arm.server, arm.draft)
            if await self.engines.admin(arm.server).checksum() != self._checksums[arm]:
                raise EngineFault(f"the engine does not hold draft {arm.draft.version} after its swap")
        port = urlsplit(self.engines.url(arm.server)).port
        assert port is not None
        texts = self.warm_texts[:concurrency]
        return await asyncio.gather(*(asyncio.to_thread(generate, port, text, WARM_TOKENS) for text in texts))

    async def run(self, arm: Arm, prompts: Sequence[Sequence[int]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` with ``concurrency`` requests under way. Raises :class:`MeasurementError` when the server
        died: that is no figure of its speed."""
        result = await self.engines.client(arm.server).batch(prompts, concurrency, self.max_new_tokens)
        self.engines.check(arm.server)
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """How far apart two next tokens lie for the server without speculation."""
        return await self.engines.client(OFF).margin(prefix, one, other)

    async def _swap(self, server: str, draft: FetchedDraft) -> None:
        """Load ``draft`` and drop cached prefixes: the former draft's keys are in them, and its prompts come again."""
        await self.engines.admin(server).swap(draft.weights, draft.version)
        await self.engines.admin(server).flush()
        self._loaded[server] = draft
