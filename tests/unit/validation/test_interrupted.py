"""A validator whose pod is told to end says so by its exit status, which its Job does not count as a failure."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_protocol.pod_settings import EXIT_INTERRUPTED, ValidationSettings
from aurora_runtime import termination_message
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation import main
from aurora_store.deadline import is_interrupted
from aurora_store.errors import StoreInterrupted


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
