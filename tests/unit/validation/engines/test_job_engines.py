"""The engines of a validation Job: which draft is loaded, and how each arm is warmed up, before a batch runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_protocol.evidence_records import Arm
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engines.job_engines import JobEngines
from aurora_runtime.validation.engines.load_client import Answer, BatchResult
from aurora_runtime.validation.engines.warm_up import DRAFT_TOKENS, ENGINE_TOKENS, WarmUp


@dataclass
class ScriptedEngines:
    """Stands in for the engines, their clients and the draft's swap. Notes every call."""

    calls: list[str] = field(default_factory=list)
    failures: int = 0
    """How many requests of each batch fail."""
    name: str = ""

    def client(self, name: str) -> ScriptedEngines:
        self.name = name
        return self

    admin = client

    async def batch(self, prompts: Sequence[Sequence[int]], concurrency: int, max_new_tokens: int) -> BatchResult:
        assert concurrency == 1
        self.calls.append(f"{self.name} answers {len(prompts)} x {max_new_tokens}")
        return BatchResult(tuple(None if at < self.failures else Answer((1,), 1) for at in range(len(prompts))), 1.0)

    async def flush_prefix_cache(self) -> None:
        self.calls.append(f"{self.name} flushes")

    async def load(self, draft: FetchedDraft) -> float:
        self.calls.append(f"loads {draft.version}")
        return 0.0

    def check(self, name: str) -> None:
        """Every engine is alive."""


def job_engines(scripted: Any) -> JobEngines:
    drafts = {Arm.ACTIVE: FetchedDraft(Path("/a"), 0), Arm.CANDIDATE: FetchedDraft(Path("/c"), 1)}
    warm_up = WarmUp(((1, 2), (3,)), 64)
    engines = JobEngines(scripted, drafts, DraftSpec(), (Arm.OFF,), warm_up, max_new_tokens=64, deadline=0.0)
    engines._draft_swap = scripted
    return engines


async def test_a_draft_is_warmed_up_at_length_when_it_is_new_and_shortly_after_each_further_swap() -> None:
    scripted = ScriptedEngines()
    engines = job_engines(scripted)
    for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.CANDIDATE, Arm.ACTIVE, Arm.OFF):
        await engines.prepare(arm)
    assert scripted.calls == [
        *("off answers 1 x 24", "off flushes"),
        *("draft answers 2 x 64", "draft flushes"),
        *("loads 1", "draft answers 2 x 64", "draft flushes"),
        "draft flushes",
        *("loads 0", "draft answers 1 x 8", "draft flushes"),
        "off flushes",
    ]


async def test_a_failed_warm_up_is_repeated_in_full() -> None:
    scripted = ScriptedEngines(failures=2)
    engines = job_engines(scripted)
    for _ in range(2):
        with pytest.raises(EngineFault, match="warm-up request failed on active"):
            await engines.prepare(Arm.ACTIVE)
    assert scripted.calls == ["draft answers 2 x 64"] * 2


async def test_a_draft_on_which_some_requests_fail_is_left_to_the_rounds() -> None:
    scripted = ScriptedEngines(failures=1)
    await job_engines(scripted).prepare(Arm.ACTIVE)
    assert scripted.calls == ["draft answers 2 x 64", "draft flushes"]


@given(st.integers(1, 40), st.integers(1, 8192))
def test_a_new_draft_answers_the_oldest_prompts_and_a_bounded_number_of_tokens(
    prompts: int, max_new_tokens: int
) -> None:
    texts = [(number,) for number in range(prompts)]
    warm_up = WarmUp.of(texts, DraftSpec(), max_new_tokens)
    assert list(warm_up.prompts) == texts[-len(warm_up.prompts) :]
    assert warm_up.tokens <= max_new_tokens
    total = len(warm_up.prompts) * warm_up.tokens
    assert total < DRAFT_TOKENS + warm_up.tokens
    assert total >= DRAFT_TOKENS or len(warm_up.prompts) == prompts


def test_a_draft_of_fixed_shape_has_no_controller_that_must_get_to_know_it() -> None:
    warm_up = WarmUp.of([(1,), (2,)], DraftSpec(shape=Shape.FIXED), 64)
    assert warm_up == WarmUp(((2,),), ENGINE_TOKENS)
