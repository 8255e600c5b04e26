"""The engines of a validation Job: which draft is loaded, and how each arm is warmed up, before a batch runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aurora_runtime.validation.engines.job_engines import JobEngines
from aurora_runtime.validation.engines.warm_up import WarmUp

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.evidence_records import Arm
from aurora_runtime.engine.speculation_flags import NGRAM_TOKENS, Eagle3, Ngram
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.load_client import Answer, BatchResult
from aurora_runtime.validation.store_reads import FetchedDraft


@dataclass
class ScriptedEngines:
    """Stands in for the engines, their clients and the draft's swap. Notes every call."""

    calls: list[str] = field(default_factory=list)
    failing: tuple[int, ...] = ()
    """The numbers of the requests that fail, from 1."""
    dead: bool = False
    """Whether a failed request means that the engine died."""
    requests: int = 0
    name: str = ""
    held: str = ""
    started: dict[str, Eagle3 | Ngram | None] = field(default_factory=dict)
    spec: Any = field(default_factory=lambda: SimpleNamespace(device="cpu"))
    folder: Path = Path("/nowhere")

    def start(self, name: str, speculation: Eagle3 | Ngram | None, *, memory_share: float) -> None:
        self.started[name] = speculation

    async def wait_ready(self, name: str, deadline: float) -> None: ...

    def admin(self, name: str) -> ScriptedEngines:
        self.name = name
        return self

    def client(self, name: str, deadline: float, *, held_off: bool) -> ScriptedEngines:
        assert deadline > time.monotonic() - 60, "batches end with the measurement"
        self.held = " off" if held_off else ""
        return self.admin(name)

    async def batch(self, prompts: Sequence[Sequence[int]], concurrency: int, max_new_tokens: int) -> BatchResult:
        assert concurrency == len(prompts)
        self.requests += 1
        at_a_time = f" {concurrency} times" if concurrency > 1 else ""
        self.calls.append(f"{self.name} answers{self.held} {max_new_tokens}{at_a_time}")
        answer = None if self.requests in self.failing else Answer((1,) * max_new_tokens, 1)
        return BatchResult((answer,) * concurrency, 1.0)

    async def flush_prefix_cache(self) -> None:
        self.calls.append(f"{self.name} flushes")

    async def load(self, draft: FetchedDraft) -> float:
        self.calls.append(f"loads {draft.version}")
        return 0.0

    def check(self, name: str) -> None:
        if self.dead:
            raise MeasurementError(f"engine {name} died")


def job_engines(scripted: Any, *, seconds: float = 60.0, concurrencies: tuple[int, ...] = ()) -> JobEngines:
    drafts = {Arm.ACTIVE: FetchedDraft(Path("/a"), 0), Arm.CANDIDATE: FetchedDraft(Path("/c"), 1)}
    warm_up = WarmUp(((1, 2), (3,), (4,)), 64, 100, concurrencies)
    deadline = time.monotonic() + seconds
    engines = JobEngines(scripted, drafts, DraftSpec(), (Arm.OFF,), warm_up, max_new_tokens=64, deadline=deadline)
    engines._draft_swap = scripted
    return engines


@pytest.mark.parametrize("steps", [3, 15])
async def test_ngram_runs_as_wide_as_by_itself_however_many_tokens_the_draft_proposes(
    steps: int, tmp_path: Path
) -> None:
    scripted = ScriptedEngines(folder=tmp_path)
    engines = job_engines(scripted)
    engines.draft_spec, engines.baseline_arms = DraftSpec(steps=steps), (Arm.OFF, Arm.NGRAM)
    await engines._start()
    assert scripted.started["ngram"] == Ngram(NGRAM_TOKENS)
    assert isinstance(scripted.started["draft"], Eagle3)
    assert len(scripted.started) == 2, "off is the engine with the drafts"


LEARNS = ("draft answers 64", "draft answers 36")


async def test_a_draft_is_warmed_up_at_length_when_it_is_new_and_shortly_after_each_further_swap() -> None:
    scripted = ScriptedEngines()
    engines = job_engines(scripted)
    for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.CANDIDATE, Arm.ACTIVE, Arm.OFF):
        await engines.prepare(arm)
    assert scripted.calls == [
        *("draft answers off 24", "draft flushes"),
        *(*LEARNS, "draft flushes"),
        *("loads 1", *LEARNS, "draft flushes"),
        "draft flushes",
        *("loads 0", "draft answers 8", "draft flushes"),
        "draft flushes",
    ]


async def test_every_arm_answers_a_batch_at_every_concurrency_before_it_is_measured() -> None:
    """Otherwise the first draft would pay for what the controller has to learn about each batch size."""
    scripted = ScriptedEngines()
    engines = job_engines(scripted, concurrencies=(4, 8))
    for arm in (Arm.OFF, Arm.CANDIDATE, Arm.ACTIVE, Arm.CANDIDATE):
        await engines.prepare(arm)
    batches = ("draft answers 24 4 times", "draft answers 24 8 times")
    assert scripted.calls == [
        *("draft answers off 24", "draft answers off 24 4 times", "draft answers off 24 8 times", "draft flushes"),
        *("loads 1", *LEARNS, *batches, "draft flushes"),
        *("loads 0", *LEARNS, *batches, "draft flushes"),
        *("loads 1", "draft answers 8", "draft flushes"),
    ]


async def test_a_draft_that_fails_a_batch_of_the_warm_up_is_left_to_the_rounds() -> None:
    scripted = ScriptedEngines(failing=(3,))
    await job_engines(scripted, concurrencies=(4, 8)).prepare(Arm.ACTIVE)
    assert scripted.calls == [*LEARNS, "draft answers 24 4 times", "draft flushes"], "no batch follows a failed one"


async def test_a_warm_up_without_an_answer_is_an_error_and_is_repeated() -> None:
    scripted = ScriptedEngines(failing=(1, 2))
    engines = job_engines(scripted)
    for _ in range(2):
        with pytest.raises(EngineFault, match="warm-up request failed on active"):
            await engines.prepare(Arm.ACTIVE)
    assert scripted.calls == ["draft answers 64"] * 2, "each ends at the first failure"


async def test_a_draft_on_which_some_requests_fail_is_left_to_the_rounds() -> None:
    scripted = ScriptedEngines(failing=(2,))
    await job_engines(scripted).prepare(Arm.ACTIVE)
    assert scripted.calls == [*LEARNS, "draft flushes"]


async def test_an_engine_that_dies_in_the_warm_up_is_no_verdict() -> None:
    with pytest.raises(MeasurementError, match="draft died"):
        await job_engines(ScriptedEngines(failing=(2,), dead=True)).prepare(Arm.ACTIVE)


async def test_no_draft_is_warmed_up_after_the_deadline() -> None:
    scripted = ScriptedEngines()
    await job_engines(scripted, seconds=-1.0).prepare(Arm.ACTIVE)
    assert scripted.calls == ["draft flushes"]
