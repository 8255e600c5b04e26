"""The engines of a validation Job: one for off and both drafts, and one for NGRAM where it is asked for.

Invariants: active and candidate share one engine and are swapped in place, as the agent does it, so they differ in
their weights alone. Off is the same engine, held to rounds without proposals. Every engine that was started is stopped
on exit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.evidence_records import Arm
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.speculation_flags import NGRAM_TOKENS, Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engines.engine_set import MEMORY_SHARE, EngineSet
from aurora_runtime.validation.engines.load_client import BatchResult, LoadClient
from aurora_runtime.validation.engines.warm_up import SWAP_TOKENS, WarmUp
from aurora_runtime.validation.rounds.measurement_plan import DRAFT_ARMS

_DRAFT_ENGINE = "draft"


def _engine_name(arm: Arm) -> str:
    """The engine that runs ``arm``."""
    return arm.value if arm is Arm.NGRAM else _DRAFT_ENGINE


@dataclass
class JobEngines:
    """Implements :class:`EnginesUnderTest` on engines of this machine.

    An async context manager. ``deadline`` is on :func:`time.monotonic`, in seconds.
    """

    engines: EngineSet
    drafts: dict[Arm, FetchedDraft]
    """The active draft and the candidate."""
    draft_spec: DraftSpec
    baseline_arms: tuple[Arm, ...]
    """Off and, where asked for, NGRAM."""
    warm_up: WarmUp
    max_new_tokens: int
    deadline: float
    _draft_swap: DraftSwap | None = field(default=None, init=False)
    _loaded: Arm = field(default=Arm.ACTIVE, init=False)
    _is_cold: bool = field(default=True, init=False)
    """Whether the engine with the drafts has answered nothing since its start or its last swap."""
    _known: set[Arm] = field(default_factory=set, init=False)
    """The arms that were warmed up at all."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            await self._verify_drafts()
        except BaseException:
            await self.engines.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.engines.close()

    async def _start(self) -> None:
        active = self.drafts[Arm.ACTIVE]
        controller = controller_of(self.draft_spec, self.engines.folder, "measurement", shares=False)
        eagle = Eagle3(active.folder, active.version, self.draft_spec, controller)
        speculation: dict[str, Eagle3 | Ngram | None] = {_DRAFT_ENGINE: eagle}
        if Arm.NGRAM in self.baseline_arms:
            speculation[_engine_name(Arm.NGRAM)] = Ngram(NGRAM_TOKENS)
        on_gpu = self.engines.spec.device != "cpu"
        for started, (name, method) in enumerate(speculation.items()):
            # Each engine takes its part of the memory that the earlier ones left free, so a GPU starts them in turn.
            self.engines.start(name, method, memory_share=MEMORY_SHARE / (len(speculation) - started))
            if on_gpu:
                await self.engines.wait_ready(name, self.deadline)
        if not on_gpu:
            for name in speculation:
                await self.engines.wait_ready(name, self.deadline)

    async def _verify_drafts(self) -> None:
        """Load the candidate and the active draft once: proves that both load, and learns their checksums."""
        swap = self._draft_swap = DraftSwap(self.engines.admin(_DRAFT_ENGINE))
        await swap.remember_checksum(self.drafts[Arm.ACTIVE])
        for arm in (Arm.CANDIDATE, Arm.ACTIVE):
            await swap.load(self.drafts[arm])
        self._loaded = Arm.ACTIVE

    async def prepare(self, arm: Arm) -> None:
        """Swap the draft if needed, warm the engine up, and empty the prefix cache."""
        if arm in self.drafts and arm is not self._loaded:
            if self._draft_swap is None:
                raise MeasurementError("the engines were not started: enter the context first")
            await self._draft_swap.load(self.drafts[arm])
            self._loaded, self._is_cold = arm, True
        if arm not in self._known or (arm in self.drafts and self._is_cold):
            await self._warm_up(arm)
        await self.engines.admin(_engine_name(arm)).flush_prefix_cache()

    def _client(self, arm: Arm) -> LoadClient:
        return self.engines.client(_engine_name(arm), self.deadline, held_off=arm is Arm.OFF)

    async def _warm_up(self, arm: Arm) -> None:
        """Warm ``arm`` up. A draft on which some requests fail is left to the rounds, where the failures are judged."""
        name, client = _engine_name(arm), self._client(arm)
        if arm in self._known:
            result = await self.warm_up.answer_once(client, SWAP_TOKENS)
        else:
            result = await self.warm_up.first_time(
                client, drafts=arm in DRAFT_ARMS, may_continue=lambda: time.monotonic() <= self.deadline
            )
        if result.failures:
            self.engines.check(name)
        if result.failures and result.failures == len(result.answers):
            raise EngineFault(f"a warm-up request failed on {arm}: see the log of engine {name}")
        self._is_cold = self._is_cold and arm not in self.drafts
        self._known.add(arm)

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts``. Raises :class:`MeasurementError` when the engine died or time is up: no verdict."""
        result = await self._client(arm).batch(prompts, concurrency, self.max_new_tokens)
        self.engines.check(_engine_name(arm))
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the log-probabilities of two next tokens after ``prefix``."""
        return await self._client(Arm.OFF).margin(prefix, one, other)
