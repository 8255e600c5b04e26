"""How a validator ends: its exit status when its pod is told to end, and the time that it leaves for its end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.validation import FINISH_RESERVE_SECONDS
from aurora_protocol.pod_settings import EXIT_INTERRUPTED, ValidationSettings
from aurora_runtime import termination_message
from aurora_runtime.engine.server_process import STOP_SECONDS
from aurora_runtime.errors import MeasurementError
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation import lent_replica, main
from aurora_runtime.validation.main import STORE_SECONDS
from aurora_runtime.validation.measured_engine import REQUEST_SECONDS
from aurora_store.deadline import is_interrupted
from aurora_store.errors import StoreInterrupted
from aurora_store.objects import TIMEOUT_SECONDS


@pytest.fixture(name="message")
def _message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the termination message, as Kubernetes mounts it. Settings and store are not read."""
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setattr(termination_message, "TERMINATION_LOG", file)
    monkeypatch.setattr(ValidationSettings, "from_env", lambda: None)
    monkeypatch.setattr(main, "_open_registry", lambda *_: None)
    return file


def test_a_validator_that_is_told_to_end_has_not_failed(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    monkeypatch.setattr(main, "validate", measure)
    with pytest.raises(SystemExit) as ended:
        main.main([])
    assert ended.value.code == EXIT_INTERRUPTED == 128 + signal.SIGTERM
    assert message.read_text()


def test_a_signal_ends_a_call_of_the_store(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a slow store would hold the validator until it is killed, which its Job counts as a failure."""

    class SlowStore:
        def lineage(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            give_up = time.monotonic() + 30
            while not is_interrupted():
                assert time.monotonic() < give_up
                time.sleep(0.01)
            raise StoreInterrupted("nobody waits")

    settings = SimpleNamespace(validation=SimpleNamespace(timeout_seconds=600))
    monkeypatch.setattr(ValidationSettings, "from_env", lambda: settings)
    monkeypatch.setattr(main, "_open_registry", lambda *_: SlowStore())
    with pytest.raises(SystemExit) as ended:
        main.main([])
    assert ended.value.code == EXIT_INTERRUPTED
    assert message.read_text()


def test_a_validator_that_could_not_measure_has_failed(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def measure(*_: Any) -> None:
        raise MeasurementError("3 of 8 prompts")

    monkeypatch.setattr(main, "validate", measure)
    with pytest.raises(SystemExit) as ended:
        main.main([])
    assert ended.value.code == 1
    assert message.read_text() == "3 of 8 prompts"


def test_a_validator_without_its_key_measures_nothing(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="has no evidence-key"):
        main._open_registry(cast(ValidationSettings, None), tmp_path)


STORE_CALLS = 3
"""Requests that store the evidence: a listing and a read of the channel, and the write."""
ENGINES = 2


def test_the_reserve_covers_what_follows_the_deadline() -> None:
    """One batch may still run, and then the engines are stopped, or the replica is given back."""
    assert STORE_CALLS * TIMEOUT_SECONDS <= STORE_SECONDS
    returned = max(ENGINES * STOP_SECONDS, lent_replica.CALL_SECONDS)
    assert REQUEST_SECONDS + returned + STORE_SECONDS <= FINISH_RESERVE_SECONDS


async def test_a_measurement_may_use_its_whole_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is kept back for what follows the rounds."""
    deadlines = list[float]()

    def opened(_settings: Any, _registry: Any, deadline: float) -> None:
        deadlines.append(deadline)
        raise MeasurementError("enough")

    monkeypatch.setattr(main.ValidationRun, "open", opened)
    monkeypatch.setattr(main, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    settings: Any = SimpleNamespace(validation=SimpleNamespace(timeout_seconds=60))
    with pytest.raises(MeasurementError):
        await main.validate(settings, cast(PodRegistry, None), tmp_path, tmp_path)
    assert deadlines == [1060.0]
