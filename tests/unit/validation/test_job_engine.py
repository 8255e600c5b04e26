"""The engine of a validation Job: what is started, and which draft is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_protocol.agent_api import Machine
from aurora_protocol.evidence_records import Arm
from aurora_runtime.engine.speculation_flags import NGRAM_TOKENS, Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.validation.job_engine import EngineSet, JobEngine
from aurora_runtime.validation.store_reads import FetchedDraft

MACHINE = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")


@dataclass
class ScriptedEngines:
    """Stands in for the engines and the draft's swap. Notes every call."""

    folder: Path
    calls: list[str] = field(default_factory=list)
    started: dict[str, Eagle3 | Ngram | None] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    spec: Any = field(default_factory=lambda: SimpleNamespace(device="cuda"))
    name: str = ""

    def start(self, name: str, speculation: Eagle3 | Ngram | None, *, memory_share: float = 0.85) -> None:
        self.started[name] = speculation
        self.shares.append(memory_share)

    async def wait_ready(self, name: str, deadline: float) -> None:
        self.calls.append(f"waits for {name}")

    def admin(self, name: str) -> ScriptedEngines:
        self.name = name
        return self

    async def flush_prefix_cache(self) -> None:
        self.calls.append(f"{self.name} flushes")

    async def load(self, draft: FetchedDraft) -> float:
        self.calls.append(f"loads {draft.version}")
        return 0.0


def job_engine(scripted: ScriptedEngines, draft: DraftSpec | None = None, *, with_ngram: bool = False) -> JobEngine:
    drafts = {Arm.ACTIVE: FetchedDraft(Path("/a"), 0), Arm.CANDIDATE: FetchedDraft(Path("/c"), 1)}
    return JobEngine(cast(EngineSet, scripted), drafts, draft or DraftSpec(), with_ngram, MACHINE, math.inf)


@pytest.mark.parametrize("steps", [3, 15])
async def test_ngram_runs_as_wide_as_by_itself_on_an_engine_of_its_own(steps: int, tmp_path: Path) -> None:
    scripted = ScriptedEngines(tmp_path)
    await job_engine(scripted, DraftSpec(steps=steps), with_ngram=True)._start()
    assert scripted.started["ngram"] == Ngram(NGRAM_TOKENS)
    assert isinstance(scripted.started["draft"], Eagle3)
    assert len(scripted.started) == 2, "off is the engine with the drafts"
    assert scripted.shares == [0.425, 0.85], "of the memory that is free"
    assert scripted.calls[0] == "waits for draft"


@pytest.mark.parametrize("scope", LookupScope)
async def test_the_engine_looks_where_a_pod_looks(scope: LookupScope, tmp_path: Path) -> None:
    scripted = ScriptedEngines(tmp_path)
    await job_engine(scripted, DraftSpec(lookup=scope))._start()
    eagle = scripted.started["draft"]
    assert isinstance(eagle, Eagle3)
    assert eagle.controller is not None
    assert SpeculationSettings.from_json(eagle.controller.settings).lookup is scope


async def test_a_draft_is_loaded_once_and_every_arm_finds_an_empty_cache(tmp_path: Path) -> None:
    scripted = ScriptedEngines(tmp_path)
    engine = job_engine(scripted)
    engine._draft_swap = cast(Any, scripted)
    arms = (Arm.ACTIVE, Arm.CANDIDATE, Arm.OFF, Arm.CANDIDATE, Arm.NGRAM, Arm.ACTIVE)
    assert [await engine.hold(arm) for arm in arms] == [False, True, False, False, False, True]
    assert scripted.calls == [
        "draft flushes",
        *("loads 1", "draft flushes"),
        "draft flushes",
        "draft flushes",
        "ngram flushes",
        *("loads 0", "draft flushes"),
    ]
