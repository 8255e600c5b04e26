"""The trainer's program says in its status why it cannot begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.errors import Interrupted
from aurora_runtime.training import main, retry
from aurora_runtime.training.progress import StatusWriter
from aurora_runtime.training.retry import Retrier
from aurora_store import Keys
from aurora_store.errors import ObjectRefused
from tests.unit.training import tiny
from tests.unit.training.heads import published
from tests.unit.training.trainer_rig import Traffic, TrainerRig


class StopsAfterTwoWaits(Retrier):
    """Each wait of a retry ends at once. After the second the trainer is asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def call(self, action: str, function: Any, on_failure: Any = None) -> Any:
        def failed(message: str) -> None:
            if on_failure is not None:
                on_failure(message)
            self.messages.append(message)
            if len(self.messages) == 2:
                self.stop()

        return super().call(action, function, failed)


def test_a_head_that_does_not_fit_is_named_in_the_status_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = TrainerRig(tmp_path / "target")
    registry, _ = tiny.memory_registry()
    draft, vocabulary = published.trained_draft(rig.target)
    config, tensors = published.specforge(draft, vocabulary.to_target, rig.target)
    head = published.write(tmp_path / "head", (config | {"norm_output": True}, tensors))
    settings = rig.settings.model_copy(update={"draft": DraftSpec(initial=head)})
    monkeypatch.setattr(main, "load_target", lambda _spec: rig.target)
    monkeypatch.setattr(retry, "INITIAL_BACKOFF_SECONDS", 0.01)
    retrier = StopsAfterTwoWaits()
    with pytest.raises(Interrupted):
        main.run(settings, registry, retrier, torch.device("cpu"), None)
    assert registry.lineage() is None
    status = registry.trainer_status()
    assert status is not None
    assert status.phase is TrainerPhase.STARTING
    assert status.message == retrier.messages[0]
    assert "norm_output" in status.message


def test_a_trainer_whose_state_is_archived_says_so_while_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, retrier = TrainerRig(tmp_path), StopsAfterTwoWaits()
    rig.trainer(Traffic(rig.registry, 3)).run()
    get = rig.objects.get

    def archived(key: str, *arguments: Any, **options: Any) -> bytes:
        if key.startswith(Keys.TRAINER_STATE) and not key.endswith(".json"):
            raise ObjectRefused("InvalidObjectState; restore the object")
        return get(key, *arguments, **options)

    monkeypatch.setattr(rig.objects, "get", archived)
    monkeypatch.setattr(main, "load_target", lambda _spec: rig.target)
    monkeypatch.setattr(retry, "INITIAL_BACKOFF_SECONDS", 0.01)
    with pytest.raises(Interrupted):
        main.run(rig.settings, rig.registry, retrier, torch.device("cpu"), None)
    status = rig.registry.trainer_status()
    assert status is not None
    assert status.phase is TrainerPhase.STARTING
    assert status.message == "reading the trainer's state failed: InvalidObjectState; restore the object"


def test_an_announced_phase_keeps_the_other_fields_of_the_status() -> None:
    registry, _ = tiny.memory_registry()
    StatusWriter(registry).announce("reading the target failed: set HF_TOKEN")
    status = registry.trainer_status()
    assert status is not None
    assert (status.phase, status.message, status.step) == (
        TrainerPhase.STARTING,
        "reading the target failed: set HF_TOKEN",
        0,
    )
    reported = {
        "step": 7,
        "held_out_acceptance_length": 2.5,
        "held_out_requests": 3,
    }
    registry.put_trainer_status(status.model_copy(update=reported))
    StatusWriter(registry).announce("loading")
    status = registry.trainer_status()
    assert status is not None
    assert (status.step, status.held_out_acceptance_length, status.message) == (7, 2.5, "loading")
    assert status.held_out_requests is None, "a trainer that cannot start delays no measurement"


def test_a_status_that_cannot_be_read_is_replaced() -> None:
    registry, _ = tiny.memory_registry()
    registry.objects.put(Keys.TRAINER_STATUS, b'{"schemaVersion": 2, "phase": "Dreaming"}')
    StatusWriter(registry).announce("loading")
    status = registry.trainer_status()
    assert status is not None
    assert (status.phase, status.message) == (TrainerPhase.STARTING, "loading")
