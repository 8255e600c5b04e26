"""The engine of a validation Job: what is started, which draft is loaded, and that a dead engine is no verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, Shape
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.agent_api import Machine
from aurora_protocol.evidence_records import Arm
from aurora_protocol.pod_settings import StoreSettings, ValidationSettings
from aurora_runtime.engine.server_process import EngineProcess, EngineSpec
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.engine.speculation_flags import NGRAM_TOKENS, Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.job_engine import JobEngine
from aurora_runtime.validation.main import measurement_environment
from aurora_runtime.validation.measured_engine import BatchResult
from aurora_runtime.validation.store_reads import FetchedDraft
from tests.assets.signing import ROOT_OWNER

MACHINE = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")


@dataclass
class Scripted:
    """Stands in for the engine processes and for the swap. Notes every call."""

    calls: list[str] = field(default_factory=list)
    started: dict[str, Eagle3 | Ngram | None] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)

    def start(self, process: Any, _spec: Any, speculation: Eagle3 | Ngram | None, *, memory_share: float) -> None:
        self.started[process.name] = speculation
        self.calls.append(f"starts {process.name} with {memory_share}")
        process.log_file.write_text("the last words")

    def wait_ready(self, process: Any, _deadline: float) -> None:
        self.calls.append(f"waits for {process.name}")

    async def load(self, draft: FetchedDraft) -> float:
        self.calls.append(f"loads {draft.version}")
        return 0.0

    async def flush(self) -> None:
        self.calls.append("flushes")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(EngineProcess, "start", lambda *a, **k: scripted.start(*a, **k))
    monkeypatch.setattr(EngineProcess, "wait_ready", lambda *a: scripted.wait_ready(*a))
    monkeypatch.setattr(EngineProcess, "is_alive", lambda process: process.name not in scripted.dead)
    monkeypatch.setattr(SGLangClient, "flush_prefix_cache", lambda _: scripted.flush())
    return scripted


def job_engine(
    folder: Path, scripted: Scripted, draft: DraftSpec | None = None, *, with_ngram: bool = False
) -> JobEngine:
    drafts = {Arm.ACTIVE: FetchedDraft(Path("/a"), 0), Arm.CANDIDATE: FetchedDraft(Path("/c"), 1)}
    spec = EngineSpec(model="m", device="cuda", kv_tokens=1)
    engine = JobEngine(spec, folder, drafts, draft or DraftSpec(), with_ngram, MACHINE, math.inf)
    engine._session = cast(Any, None)
    engine._draft_swap = cast(Any, scripted)
    return engine


@pytest.mark.parametrize("steps", [3, 15])
async def test_ngram_runs_as_wide_as_by_itself_on_an_engine_of_its_own(
    steps: int, tmp_path: Path, scripted: Scripted
) -> None:
    await job_engine(tmp_path, scripted, DraftSpec(steps=steps), with_ngram=True)._start()
    assert scripted.started["ngram"] == Ngram(NGRAM_TOKENS)
    assert isinstance(scripted.started["draft"], Eagle3)
    assert scripted.calls == [
        *("starts draft with 0.425", "waits for draft"),
        *("starts ngram with 0.85", "waits for ngram"),
    ], "each gets a share of the memory that is free, and off is the engine with the drafts"


@pytest.mark.parametrize("scope", LookupScope)
async def test_the_engine_looks_where_a_pod_looks_and_the_evidence_says_so(
    scope: LookupScope, tmp_path: Path, scripted: Scripted
) -> None:
    draft = DraftSpec(lookup=scope)
    await job_engine(tmp_path, scripted, draft)._start()
    eagle = scripted.started["draft"]
    assert isinstance(eagle, Eagle3)
    assert eagle.controller is not None
    assert SpeculationSettings.from_json(eagle.controller.settings).lookup is scope
    for shape, looked in ((Shape.ADAPTIVE, scope), (Shape.FIXED, LookupScope.OFF)):
        settings = ValidationSettings(
            namespace="n",
            name="s",
            target=TargetSpec(model="m"),
            draft=draft.model_copy(update={"shape": shape}),
            validation=ValidationSpec(),
            store=StoreSettings(owner=ROOT_OWNER.id, bucket="b", root="r"),
            candidate=5,
            active=2,
            attempt=2,
        )
        assert measurement_environment(settings, MACHINE).lookup is looked


async def test_a_draft_is_loaded_once_and_every_arm_finds_an_empty_cache(tmp_path: Path, scripted: Scripted) -> None:
    engine = job_engine(tmp_path, scripted)
    arms = (Arm.ACTIVE, Arm.CANDIDATE, Arm.OFF, Arm.CANDIDATE, Arm.NGRAM, Arm.ACTIVE)
    assert [await engine.hold(arm) for arm in arms] == [False, True, False, False, False, True]
    assert scripted.calls == ["flushes", "loads 1", *["flushes"] * 4, "loads 0", "flushes"]


async def test_a_dead_engine_is_no_verdict(tmp_path: Path, scripted: Scripted) -> None:
    engine = job_engine(tmp_path, scripted, with_ngram=True)
    await engine._start()
    scripted.dead = {"ngram"}
    await engine.confirm(Arm.CANDIDATE, BatchResult((), 1.0))
    with pytest.raises(MeasurementError, match=r"engine ngram died; (?s:.*)the last words"):
        await engine.confirm(Arm.NGRAM, BatchResult((), 1.0))


"""An engine's program, with a draft that it starts with."""
