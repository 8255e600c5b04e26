"""The engines under measurement: one with the draft, and without a baseline one without speculation and NGRAM's.

Invariants: all are built from one spec and differ in speculation alone; active and candidate share one engine, whose
draft is swapped in place as the agent does it, so that they differ in their weights alone; whatever was started is
stopped on exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.evidence_records import Arm
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.load_client import BatchResult, Client
from aurora_runtime.validation.server_set import EngineSet

WARM_TOKENS = 24
GPU_SHARE = 0.85


@dataclass
class Engines:
    """Implements :class:`~aurora_runtime.validation.engines_under_test.EnginesUnderTest` on real servers.

    An async context manager.
    """

    servers: EngineSet
    drafts: dict[Arm, FetchedDraft]  # ACTIVE and CANDIDATE
    draft_spec: DraftSpec
    apart: tuple[Arm, ...]
    """Of OFF and NGRAM those to start an engine for."""
    warm_prompt: tuple[int, ...]
    max_new_tokens: int
    deadline: float
    _draft_swap: DraftSwap | None = None
    _loaded: Arm = Arm.ACTIVE
    _warm: set[Arm] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            await self._verify_drafts()
        except BaseException:
            await self.servers.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.servers.close()

    async def _start(self) -> None:
        active = self.drafts[Arm.ACTIVE]
        speculation: dict[str, Eagle3 | Ngram | None] = {
            "off": None,
            "draft": Eagle3(active.folder, active.version, self.draft_spec),
            "ngram": Ngram(self.draft_spec.tokens_per_round),
        }
        for arm in {Arm.OFF, Arm.NGRAM} - set(self.apart):
            del speculation[arm.value]
        together = self.servers.spec.device == "cpu"
        for started, (name, kind) in enumerate(speculation.items()):
            # Each takes its part of what the earlier ones left free; hence one after the other on a GPU.
            self.servers.start(name, kind, memory_share=GPU_SHARE / (len(speculation) - started))
            if not together:
                await self.servers.wait_ready(name, self.deadline)
        for name in speculation if together else ():
            await self.servers.wait_ready(name, self.deadline)

    def _admin(self, arm: Arm) -> SGLangClient:
        return self.servers.admin(_server(arm))

    def _client(self, arm: Arm) -> Client:
        return self.servers.client(_server(arm))

    async def _verify_drafts(self) -> None:
        """Load the candidate and the active draft once: proves that both load, and learns their checksums."""
        swap = self._draft_swap = DraftSwap(self._admin(Arm.ACTIVE))
        await swap.learn(self.drafts[Arm.ACTIVE])
        for arm in (Arm.CANDIDATE, Arm.ACTIVE):
            await swap.load(self.drafts[arm])
        self._loaded = Arm.ACTIVE

    async def ready(self, arm: Arm) -> None:
        """Swap when needed, answer one discarded prompt, empty the prefix cache."""
        if arm in self.drafts and arm is not self._loaded:
            if self._draft_swap is None:
                raise MeasurementError("the engines were not started")
            await self._draft_swap.load(self.drafts[arm])
            self._loaded = arm
            self._warm.discard(Arm.ACTIVE)
            self._warm.discard(Arm.CANDIDATE)
        if arm not in self._warm:
            if await self._client(arm).answer(self.warm_prompt, WARM_TOKENS) is None:
                self.servers.check(_server(arm))
                raise EngineFault(f"the warm-up request failed on {arm}")
            self._warm.add(arm)
        await self._admin(arm).flush_prefix_cache()

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        result = await self._client(arm).batch(prompts, concurrency, self.max_new_tokens)
        self.servers.check(_server(arm))  # an engine that died is no verdict about its draft's speed
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        return await self._client(Arm.OFF if Arm.OFF in self.apart else Arm.ACTIVE).margin(prefix, one, other)


def _server(arm: Arm) -> str:
    return {Arm.OFF: "off", Arm.NGRAM: "ngram"}.get(arm, "draft")
