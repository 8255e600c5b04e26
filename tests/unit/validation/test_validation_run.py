"""The time limits of a measurement: what it may use itself, and what its Job has besides."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, Shape
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.validation import FINISH_RESERVE_SECONDS, ValidationSpec
from aurora_protocol.agent_api import Machine
from aurora_protocol.evidence_records import MeasurementEnd
from aurora_protocol.pod_settings import StoreSettings, ValidationSettings
from aurora_runtime.engine.server_process import STOP_SECONDS
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation import lent_replica, main
from aurora_runtime.validation.main import (
    STORE_SECONDS,
    ValidationRun,
    Workspace,
    measurement_environment,
    validate,
)
from aurora_runtime.validation.measured_engine import MeasuredEngine
from aurora_runtime.validation.rounds import Measurement, RoundRunner, measure
from aurora_store.objects import TIMEOUT_SECONDS
from tests.assets.signing import ROOT_OWNER
from tests.unit.validation.test_rounds import PROMPTS, engines, plan

STORE_CALLS = 3
"""Requests that store the evidence: a listing and a read of the channel, and the write."""
LEASE_CALLS = 2
"""The lease is confirmed and ended."""
ENGINES = 2


def test_the_reserve_covers_what_follows_the_last_round() -> None:
    assert STORE_CALLS * TIMEOUT_SECONDS <= STORE_SECONDS
    assert STORE_SECONDS + ENGINES * STOP_SECONDS <= FINISH_RESERVE_SECONDS
    assert STORE_SECONDS + LEASE_CALLS * lent_replica.CALL_SECONDS <= FINISH_RESERVE_SECONDS


async def test_the_shortest_time_limit_leaves_room_for_a_round_and_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of 32 simulated seconds. Nothing of the 60 seconds is kept back for the time after the rounds."""
    started = 1000.0

    def opened(settings: ValidationSettings, registry: PodRegistry, deadline: float) -> Any:
        return SimpleNamespace(
            deadline=deadline,
            fetch_draft=lambda *_: None,
            read_traffic=lambda: None,
        )

    async def job_engine(*_: Any) -> Any:
        return contextlib.nullcontext()

    async def simulated(run: Any, *_: Any) -> Measurement:
        machine = engines(40.0)
        return await measure(
            RoundRunner(cast(MeasuredEngine, machine), PROMPTS, plan(), run.deadline - started, machine.clock)
        )

    monkeypatch.setattr(main, "time", SimpleNamespace(monotonic=lambda: started))
    monkeypatch.setattr(ValidationRun, "open", opened)
    monkeypatch.setattr(main, "_job_engine", job_engine)
    monkeypatch.setattr(main, "_measure", simulated)
    settings = SimpleNamespace(validation=ValidationSpec(timeout_seconds=60), replica=None)
    found: Any = await validate(
        cast(ValidationSettings, settings), cast(PodRegistry, None), Workspace(tmp_path, tmp_path)
    )
    assert len(found.verdicts) == 1
    assert found.end.kind is MeasurementEnd.BUDGET_USED


@pytest.mark.parametrize("scope", LookupScope)
def test_the_evidence_says_where_the_engine_looked(scope: LookupScope) -> None:
    settings = ValidationSettings(
        namespace="n",
        name="s",
        target=TargetSpec(model="m"),
        draft=DraftSpec(lookup=scope),
        validation=ValidationSpec(),
        store=StoreSettings(owner=ROOT_OWNER.id, bucket="b", root="r"),
        candidate=5,
        active=2,
        attempt=2,
    )
    machine = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")
    assert measurement_environment(settings, machine).lookup is scope
    fixed = settings.model_copy(update={"draft": DraftSpec(lookup=scope, shape=Shape.FIXED)})
    assert measurement_environment(fixed, machine).lookup is LookupScope.OFF
