"""The trainer's status."""

from __future__ import annotations

from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.training.progress import StatusWriter
from aurora_store import Keys
from tests.unit.training import tiny


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
