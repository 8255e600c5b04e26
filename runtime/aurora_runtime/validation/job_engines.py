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
    """Implements :class:`aurora_runtime.validation.measure.Bench` on real servers. An async context manager."""

    servers: EngineSet
    drafts: dict[Arm, FetchedDraft]  # ACTIVE and CANDIDATE
    draft_spec: DraftSpec
    apart: tuple[Arm, ...]
    """Of OFF and NGRAM those to start an engine for."""
    warm_prompt: tuple[int, ...]
    max_new_tokens: int
    deadline: float
    _checksums: dict[Arm, str] = field(default_factory=dict)
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
        """Swap to the candidate and back: proves that both load, and what their checksums are."""
        booted = await self._admin(Arm.ACTIVE).checksum()
        for arm in (Arm.CANDIDATE, Arm.ACTIVE):
            self._checksums[arm] = await self._swap(arm)
        if self._checksums[Arm.ACTIVE] != booted:
            raise MeasurementError("the active draft's checksum differs after a swap away and back")
        if (self._checksums[Arm.CANDIDATE] == booted) != self._same_weights():
            raise MeasurementError("the engine did not load the candidate: its checksum is the active draft's")
        self._loaded = Arm.ACTIVE

    async def _swap(self, arm: Arm) -> str:
        """Load an arm's draft; the engine's checksum of what it holds then."""
        draft, admin = self.drafts[arm], self._admin(arm)
        await admin.swap(draft.weights, draft.version)
        return await admin.checksum()

    def _same_weights(self) -> bool:
        one, other = (self.drafts[arm].weights.read_bytes() for arm in (Arm.ACTIVE, Arm.CANDIDATE))
        return one == other

    async def ready(self, arm: Arm) -> None:
        """Swap when needed, answer one discarded prompt, empty the prefix cache."""
        if arm in self.drafts and arm is not self._loaded:
            if await self._swap(arm) != self._checksums[arm]:
                version = self.drafts[arm].version
                raise MeasurementError(f"the engine's checksum after a swap to version {version} is wrong")
            self._loaded = arm
            self._warm.discard(Arm.ACTIVE)
            self._warm.discard(Arm.CANDIDATE)
        if arm not in self._warm:
            if await self._client(arm).answer(self.warm_prompt, WARM_TOKENS) is None:
                self.servers.check(_server(arm))
                raise EngineFault(f"the warm-up request failed on {arm}")
            self._warm.add(arm)
        await self._admin(arm).flush()

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        result = await self._client(arm).batch(prompts, concurrency, self.max_new_tokens)
        self.servers.check(_server(arm))  # an engine that died is no verdict about its draft's speed
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        return await self._client(Arm.OFF if Arm.OFF in self.apart else Arm.ACTIVE).margin(prefix, one, other)


def _server(arm: Arm) -> str:
    return {Arm.OFF: "off", Arm.NGRAM: "ngram"}.get(arm, "draft")
