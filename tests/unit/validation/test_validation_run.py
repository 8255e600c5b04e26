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
from aurora_protocol.evidence_records import Arm, MeasurementEnd
from aurora_protocol.pod_settings import StoreSettings, ValidationSettings
from aurora_runtime.engine.server_process import STOP_SECONDS
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation import lent_replica, main
from aurora_runtime.validation.main import (
    STORE_SECONDS,
    ValidationRun,
    measurement_environment,
    validate,
)
from aurora_runtime.validation.measured_engine import REQUEST_SECONDS, MeasuredEngine
from aurora_runtime.validation.rounds import Measurement, RoundRunner, measure
from aurora_store.objects import TIMEOUT_SECONDS
from tests.assets.signing import ROOT_OWNER
from tests.unit.validation.test_rounds import PROMPTS, engines, no_newer_version, plan

STORE_CALLS = 3
"""Requests that store the evidence: a listing and a read of the channel, and the write."""
ENGINES = 2


def test_the_reserve_covers_what_follows_the_deadline() -> None:
    """One batch may still run, and then the engines are stopped, or the replica is given back."""
    assert STORE_CALLS * TIMEOUT_SECONDS <= STORE_SECONDS
    returned = max(ENGINES * STOP_SECONDS, lent_replica.CALL_SECONDS)
    assert REQUEST_SECONDS + returned + STORE_SECONDS <= FINISH_RESERVE_SECONDS


async def test_the_shortest_time_limit_is_used_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of 20 simulated seconds after the warm-up. No time is kept back for what follows the rounds."""
    started = 1000.0

    def opened(settings: ValidationSettings, registry: PodRegistry, deadline: float) -> Any:
        return SimpleNamespace(
            deadline=deadline,
            fetch_draft=nothing,
            read_traffic=nothing,
        )

    async def nothing(*_: Any) -> None:
        return None

    async def job_engine(*_: Any) -> Any:
        return SimpleNamespace(running=contextlib.nullcontext)

    async def simulated(run: Any, *_: Any) -> Measurement:
        machine = engines(80.0)
        machine.speeds |= {Arm.OFF: 40.0, Arm.ACTIVE: 36.0}
        runner = RoundRunner(cast(MeasuredEngine, machine), PROMPTS, plan(), run.deadline - started, machine.clock)
        return await measure(runner, newer_waits=no_newer_version)

    monkeypatch.setattr(main, "time", SimpleNamespace(monotonic=lambda: started))
    monkeypatch.setattr(ValidationRun, "open", opened)
    monkeypatch.setattr(main, "_job_engine", job_engine)
    monkeypatch.setattr(main, "_measure", simulated)
    settings = SimpleNamespace(validation=ValidationSpec(timeout_seconds=60), replica=None)
    found: Any = await validate(cast(ValidationSettings, settings), cast(PodRegistry, None), tmp_path, tmp_path)
    assert len(found.verdicts) == 2
    assert found.end is MeasurementEnd.BUDGET_USED


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
