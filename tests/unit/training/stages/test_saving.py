"""Saving does not stop training, stores what was true between two shards, and hides no error."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load

from aurora_runtime.errors import Interrupted
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.loop import Trainer
from aurora_runtime.training.settings import TrainingPolicy
from aurora_runtime.training.stages import saving
from aurora_runtime.training.stages.saving import StateSaver
from aurora_store.errors import ObjectExists, StoreError
from aurora_store.keys import Keys
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

SECONDS = 60.0
"""What a test waits at most for another thread."""


class Gate:
    """Holds the store's writes of trainer states until it is opened, and fails them as often as a test asks."""

    def __init__(self, rig: TrainerRig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.asked = threading.Event(), threading.Event()
        self.errors: list[Exception] = []
        self.threads: set[str] = set()
        put = rig.objects.put

        def held(key: str, data: bytes) -> None:
            if key.startswith(Keys.TRAINER_STATE):
                self.threads.add(threading.current_thread().name)
                self.asked.set()
                assert self.opened.wait(SECONDS)
                if self.errors:
                    raise self.errors.pop(0)
            put(key, data)

        monkeypatch.setattr(rig.objects, "put", held)


@pytest.fixture(name="rig")
def _rig(tmp_path: Path) -> TrainerRig:
    return TrainerRig(tmp_path / "target")


@pytest.fixture(name="gate")
def _gate(rig: TrainerRig, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(rig, monkeypatch)


def trainer_of(rig: TrainerRig) -> tuple[Trainer, StateSaver]:
    """A trainer that took a step, with its own saver."""
    trainer = rig.trainer(Traffic(rig.registry, 0))
    train(trainer, 0)
    return trainer, own_saver(trainer)


def own_saver(trainer: Trainer) -> StateSaver:
    """The saver that the trainer has without the rig."""
    saver = StateSaver.__new__(StateSaver)
    saver.__dict__.update(trainer.stages.saver.__dict__)
    return saver


def train(trainer: Trainer, seed: int) -> None:
    trainer.learning.session.step(examples_of(tiny.trace(seed, answer=20), tiny.VOCAB))


def stored_step(rig: TrainerRig) -> int:
    record = rig.registry.trainer_state_record()
    return record.step if record else 0


def wait_until_stored(rig: TrainerRig, step: int) -> None:
    deadline = time.monotonic() + SECONDS
    while stored_step(rig) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_training_goes_on_while_a_state_is_stored_and_does_not_change_it(rig: TrainerRig, gate: Gate) -> None:
    trainer, saver = trainer_of(rig)
    expected = {name: tensor.clone() for name, tensor in trainer.learning.session.state().items()}
    saver.save_if_due()
    assert gate.asked.wait(SECONDS)
    for seed in range(1, 4):
        train(trainer, seed)
        saver.save_if_due()  # one is in flight
    assert stored_step(rig) == 0
    gate.opened.set()
    wait_until_stored(rig, 1)
    found = rig.registry.trainer_state()
    assert found is not None
    tensors = load(found[1])
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor) or (tensor.isnan().all() and tensors[name].isnan().all()), name
    assert gate.threads == {"save"}
    saver.save()
    assert rig.registry.trainer_state_epochs() == [1, 2]
    assert stored_step(rig) == 4
    assert saver.epoch == 2


def test_a_trainer_that_stops_waits_for_the_save_in_flight_and_stores_what_came_after(
    rig: TrainerRig, gate: Gate
) -> None:
    trainer, saver = trainer_of(rig)
    saver.save_if_due()
    assert gate.asked.wait(SECONDS)
    train(trainer, 1)
    threading.Timer(0.2, gate.opened.set).start()
    saver.save()
    assert rig.registry.trainer_state_epochs() == [1, 2]
    assert stored_step(rig) == 2
    saver.save()
    assert rig.registry.trainer_state_epochs() == [1, 2], "nothing changed"


def test_the_first_state_is_stored_before_a_version_is_registered(rig: TrainerRig, gate: Gate) -> None:
    _, saver = trainer_of(rig)
    saver.save_if_due()
    threading.Timer(0.2, gate.opened.set).start()
    saver.save_first()
    assert stored_step(rig) == 1
    saver.save_first()
    assert rig.registry.trainer_state_epochs() == [1]


def test_a_second_save_begins_when_the_interval_has_passed(
    rig: TrainerRig, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.policy = TrainingPolicy()
    trainer, saver = trainer_of(rig)
    gate.opened.set()
    saver.save_first()
    train(trainer, 1)
    ended = saver._save_ended
    for seconds, epochs in ((rig.policy.save_interval_seconds - 1, [1]), (rig.policy.save_interval_seconds, [1, 2])):
        monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda at=ended + seconds: at))
        saver.save_if_due()
        saver._finish()
        assert rig.registry.trainer_state_epochs() == epochs


def test_an_error_of_a_save_is_raised_in_the_loop(rig: TrainerRig, gate: Gate) -> None:
    _, saver = trainer_of(rig)
    gate.errors = [ObjectExists("trainer/00000001.json")]
    gate.opened.set()
    saver.save_if_due()
    with pytest.raises(ObjectExists):
        saver.save()


def test_retention_learns_of_a_state_in_the_loop_after_it_is_stored(
    rig: TrainerRig, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, saver = trainer_of(rig)
    told: list[tuple[str, int]] = []
    monkeypatch.setattr(
        trainer.stages.retention,
        "state_saved",
        lambda state: told.append((threading.current_thread().name, stored_step(rig))),
    )
    saver.save_if_due()
    assert gate.asked.wait(SECONDS)
    saver.save_if_due()
    assert told == []
    gate.opened.set()
    saver.save()
    assert told == [(threading.main_thread().name, 1)]


def test_a_stop_interrupts_retries_and_the_last_save_gets_one_attempt(rig: TrainerRig, gate: Gate) -> None:
    trainer, saver = trainer_of(rig)
    gate.errors = [StoreError("away")]
    gate.opened.set()
    saver.save_if_due()
    trainer.retrier.stop()
    saver.save()
    assert stored_step(rig) == 1
    train(trainer, 1)
    gate.errors = [StoreError("away")]
    with pytest.raises(Interrupted):
        saver.save()


def test_a_real_trainer_saves_in_the_background_and_resumes_from_the_last_state(rig: TrainerRig) -> None:
    """With the trainer's own saver, and not the rig's, which waits."""
    retrier = Traffic(rig.registry, 5)
    trainer = rig.trainer(retrier)
    trainer.stages = dataclasses.replace(trainer.stages, saver=own_saver(trainer))
    trainer.run()
    record = rig.registry.trainer_state_record()
    assert record is not None
    assert sorted(record.consumed) == sorted(retrier.written)
    resumed = rig.trainer(Traffic(rig.registry, 0))
    assert resumed.learning.session.steps == trainer.learning.session.steps
