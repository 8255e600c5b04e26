"""A program that ends by an error leaves one line for the operator, without a client's text."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from aurora_protocol.pod_settings import TrainerSettings
from aurora_runtime import termination_message
from aurora_runtime.errors import CheckpointFormatError, GpuMissing, Interrupted
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training import main
from tests.unit.training.trainer_rig import TrainerRig


@pytest.fixture(name="message")
def _message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the termination message, as Kubernetes mounts it."""
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setattr(termination_message, "TERMINATION_LOG", file)
    return file


def fail_with(error: Exception) -> None:
    with termination_message.errors_reported():
        raise error


def test_our_own_error_is_told_in_its_first_line(message: Path) -> None:
    with pytest.raises(CheckpointFormatError):
        fail_with(CheckpointFormatError("lineage 1 was made for another target\nwith details"))
    assert message.read_text() == "lineage 1 was made for another target"


def test_a_message_that_cannot_be_written_hides_nothing(message: Path) -> None:
    message.unlink()
    message.mkdir()
    with pytest.raises(CheckpointFormatError):
        fail_with(CheckpointFormatError("lineage 1 was made for another target"))
    termination_message.write_termination_message("the disk is full")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("a prompt"), "KeyError"),
        (RuntimeError("the key AKIA is wrong"), "RuntimeError"),
        (OSError(errno.ENOSPC, "a prompt", "/a prompt"), "OSError (No space left on device)"),
    ],
)
def test_any_other_error_is_named_without_its_text(message: Path, error: Exception, kind: str) -> None:
    with pytest.raises(type(error)):
        fail_with(error)
    text = message.read_text()
    assert text.startswith(f"ended by {kind} at test_termination_message.py:")
    assert "prompt" not in text
    assert "AKIA" not in text


def test_the_message_is_bounded_and_without_control_characters(message: Path) -> None:
    with pytest.raises(CheckpointFormatError):
        fail_with(CheckpointFormatError("\x1b[31m" + "x" * 5000))
    text = message.read_text()
    assert len(text) == termination_message.MAX_MESSAGE_CHARACTERS
    assert text.isprintable()


def test_the_first_of_several_processes_that_fail_is_heard(message: Path) -> None:
    with pytest.raises(CheckpointFormatError):
        fail_with(CheckpointFormatError("the cause"))
    with pytest.raises(RuntimeError):
        fail_with(RuntimeError("a peer closed the connection"))
    assert message.read_text() == "the cause"


def _trainer_ends_by(error: Exception, rig: TrainerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the trainer's program, whose training raises ``error``."""

    def run(*_: object) -> None:
        raise error

    def open_registry(_objects: object) -> PodRegistry:
        return rig.registry

    monkeypatch.setattr(TrainerSettings, "from_env", lambda: rig.settings)
    monkeypatch.setattr(main, "FencedObjectStore", lambda _config: None)
    monkeypatch.setattr(main, "PodRegistry", open_registry)
    monkeypatch.setattr(main, "stop_on_signals", lambda *_: None)
    monkeypatch.setattr(main, "own_device", lambda _requested: torch.device("cpu"))
    monkeypatch.setattr(main, "run", run)
    monkeypatch.setattr(main, "end_process", lambda: None)
    main.main()


def test_a_trainer_that_ends_by_an_error_says_why(
    message: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rig = TrainerRig(tmp_path)
    _trainer_ends_by(Interrupted("asked to stop"), rig, monkeypatch)
    assert message.read_text() == "", "a trainer that was asked to stop has not failed"
    with pytest.raises(CheckpointFormatError):
        _trainer_ends_by(CheckpointFormatError("lineage 1 was made for another target"), rig, monkeypatch)
    assert message.read_text() == "lineage 1 was made for another target"


def test_a_trainer_without_a_gpu_says_what_to_set(
    message: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(TrainerSettings, "from_env", TrainerRig(tmp_path).settings.model_copy)
    with pytest.raises(GpuMissing):
        main.main()
    assert "serving.device: cpu" in message.read_text()


def test_a_trainer_without_settings_says_so(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("AURORA_SETTINGS", raising=False)
    with pytest.raises(Exception, match="AURORA_SETTINGS"):
        main.main()
    assert message.read_text().startswith("AURORA_SETTINGS is not set")
