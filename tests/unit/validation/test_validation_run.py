"""The time limits of a measurement: what it may use itself, and what its Job has besides."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aurora_runtime.validation.attempt import Attempt
from aurora_runtime.validation.engines import replica_engine

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.validation import FINISH_RESERVE_SECONDS, ValidationSpec
from aurora_protocol.evidence_records import MeasurementEnd
from aurora_protocol.pod_settings import ValidationSettings
from aurora_runtime.engine.server_process import STOP_SECONDS
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation import validation_run
from aurora_runtime.validation.main import STORE_SECONDS
from aurora_runtime.validation.rounds import Measurement, RoundRunner, measure
from aurora_runtime.validation.validation_run import ValidationRun, Workspace, validate
from aurora_store.objects import TIMEOUT_SECONDS
from tests.unit.fakes import SIZES, lineage
from tests.unit.validation.test_rounds import PROMPTS, engines, plan

STORE_CALLS = 3
"""Requests that store the evidence: a listing and a read of the channel, and the write."""
LEASE_CALLS = 2
"""The lease is confirmed and ended."""
ENGINES = 3


def test_the_reserve_covers_what_follows_the_last_round() -> None:
    assert STORE_CALLS * TIMEOUT_SECONDS <= STORE_SECONDS
    assert STORE_SECONDS + ENGINES * STOP_SECONDS <= FINISH_RESERVE_SECONDS
    assert STORE_SECONDS + LEASE_CALLS * replica_engine.CALL_SECONDS <= FINISH_RESERVE_SECONDS


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], 4096 - 128 - 64), (["--context-length", "2048"], 2048 - 128 - 64)]
)
def test_prompts_are_chosen_that_fit_into_the_engines_context(
    arguments: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(validation_run, "held_out_prompts", lambda *_, **options: asked.update(options) or ())
    settings = SimpleNamespace(draft=DraftSpec(), validation=ValidationSpec(), extra_args=arguments, replica=None)
    attempt = cast(Attempt, SimpleNamespace(settings=settings, plan=plan()))
    sizes = SIZES.model_copy(update={"max_positions": 4096})
    run = ValidationRun(attempt, cast(PodRegistry, None), lineage().model_copy(update={"draft_sizes": sizes}), math.inf)
    run.choose_prompts()
    assert asked["longest"] == expected


async def test_the_shortest_time_limit_leaves_room_for_a_round_and_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of 32 simulated seconds. Nothing of the 60 seconds is kept back for the time after the rounds."""
    started = 1000.0

    def opened(settings: ValidationSettings, registry: PodRegistry, deadline: float) -> Any:
        return SimpleNamespace(
            deadline=deadline,
            attempt=SimpleNamespace(candidate=None),
            fetch_draft=lambda *_: None,
            choose_prompts=lambda: tuple(PROMPTS),
        )

    async def simulated(run: Any, *_: Any) -> Measurement:
        machine = engines(40.0)
        return await measure(RoundRunner(machine, PROMPTS, plan(), run.deadline - started, machine.clock))

    monkeypatch.setattr(validation_run, "time", SimpleNamespace(monotonic=lambda: started))
    monkeypatch.setattr(ValidationRun, "open", opened)
    monkeypatch.setattr(validation_run, "_measure_on_job_engines", simulated)
    settings = SimpleNamespace(validation=ValidationSpec(timeout_seconds=60), replica=None)
    found: Any = await validate(
        cast(ValidationSettings, settings), cast(PodRegistry, None), Workspace(tmp_path, tmp_path)
    )
    assert len(found.verdicts) == 1
    assert found.end.kind is MeasurementEnd.BUDGET_USED
