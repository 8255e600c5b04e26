"""The engines of a validation Job: which draft is loaded, and how each arm is warmed up, before a batch runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.evidence_records import Arm
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engines.job_engines import JobEngines
from aurora_runtime.validation.engines.load_client import Answer


@dataclass
class ScriptedEngines:
    """Stands in for the engines, their clients and the draft's swap. Notes every call."""

    calls: list[str] = field(default_factory=list)
    broken: bool = False
    name: str = ""

    def client(self, name: str) -> ScriptedEngines:
        self.name = name
        return self

    admin = client

    async def answer(self, prompt: Sequence[int], max_new_tokens: int) -> Answer | None:
        self.calls.append(f"{self.name} answers {max_new_tokens}")
        return None if self.broken else Answer((1,), 1)

    async def flush_prefix_cache(self) -> None:
        self.calls.append(f"{self.name} flushes")

    async def load(self, draft: FetchedDraft) -> float:
        self.calls.append(f"loads {draft.version}")
        return 0.0

    def check(self, name: str) -> None:
        """Every engine is alive."""


def job_engines(scripted: Any) -> JobEngines:
    drafts = {Arm.ACTIVE: FetchedDraft(Path("/a"), 0), Arm.CANDIDATE: FetchedDraft(Path("/c"), 1)}
    engines = JobEngines(scripted, drafts, DraftSpec(), (Arm.OFF,), (1, 2), max_new_tokens=64, deadline=0.0)
    engines._draft_swap = scripted
    return engines


async def test_an_engine_is_warmed_up_in_full_once_and_shortly_after_each_swap() -> None:
    scripted = ScriptedEngines()
    engines = job_engines(scripted)
    for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.CANDIDATE, Arm.ACTIVE, Arm.OFF):
        await engines.prepare(arm)
    assert scripted.calls == [
        *("off answers 24", "off flushes"),
        *("draft answers 24", "draft flushes"),
        *("loads 1", "draft answers 8", "draft flushes"),
        "draft flushes",
        *("loads 0", "draft answers 8", "draft flushes"),
        "off flushes",
    ]


async def test_a_failed_warm_up_is_repeated_in_full() -> None:
    scripted = ScriptedEngines(broken=True)
    engines = job_engines(scripted)
    for _ in range(2):
        with pytest.raises(EngineFault, match="warm-up request failed on active"):
            await engines.prepare(Arm.ACTIVE)
    assert scripted.calls == ["draft answers 24"] * 2
