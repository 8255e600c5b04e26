"""The real trainer keeps its store bounded, and resumes after kills and damage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from aurora_runtime.training.candidates import Comparison
from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import trainer_state
from aurora_store import Keys
from aurora_store.errors import ObjectExists
from tests.assets.trainer_output import publish_draft
from tests.unit.training.trainer_rig import Traffic, TrainerRig


@pytest.fixture
def rig(tmp_path: Path) -> TrainerRig:
    return TrainerRig(tmp_path)


def damage_the_newest_state(rig: TrainerRig, *, data: bool) -> int:
    """Damage the newest state in its data or in its manifest; returns its epoch."""
    epoch = rig.registry.last_trainer_state_epoch()
    key = Keys.trainer_state(epoch)
    if data:
        (key,) = rig.objects.list(f"{key.removesuffix('.json')}/")
    rig.objects.put(key, b"{}")
    return epoch


@pytest.mark.parametrize("data", [False, True])
def test_a_trainer_resumes_from_the_state_before_a_damaged_one(
    rig: TrainerRig, data: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = Traffic(rig.registry, 4)
    rig.trainer(first).run()
    before = rig.registry.trainer_state_record(rig.registry.trainer_state_epochs()[-2])
    assert before is not None
    damaged = damage_the_newest_state(rig, data=data)
    again = rig.trainer(Traffic(rig.registry, 2))
    assert again.learning.ledger.consumed == before.consumed == tuple(first.written[:3])
    assert again.learning.session.steps == before.step
    assert f"epoch {damaged} is damaged" in caplog.text
    again.run()
    epochs = rig.registry.trainer_state_epochs()
    assert epochs[0] > damaged
    assert again.learning.ledger.total == len(set(rig.registry.list_shards(1).data_bytes)), (
        "the shard of the damaged state is trained again"
    )
    assert trainer_state.read(rig.registry, rig.lineage) is not None


def test_without_an_undamaged_state_the_trainer_starts_from_the_last_version(rig: TrainerRig) -> None:
    rig.trainer(Traffic(rig.registry, 1)).run()
    damaged = damage_the_newest_state(rig, data=False)
    again = rig.trainer(Traffic(rig.registry, 1))
    assert again.learning.ledger.consumed == ()
    again.run()
    assert rig.registry.last_trainer_state_epoch() > damaged


def test_a_kill_between_the_first_registration_and_the_next_save_trains_no_shard_twice(
    rig: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(rig.registry, 1)
    trainer = rig.trainer(traffic)
    candidates = trainer.stages.offering.candidates

    def register_and_die(session: Session, held_out: HeldOutSet, trained_tokens: int) -> Comparison:
        candidates._register(session, 9.0, trained_tokens)
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, "due", lambda trained_tokens, step: step > 0)
    monkeypatch.setattr(candidates, "offer", register_and_die)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert rig.registry.last_version() == 1
    again = rig.trainer(Retrier())
    assert again.learning.ledger.consumed == tuple(traffic.written)
    assert again.learning.session.steps == trainer.learning.session.steps > 0
    assert again.stages.retention.shards_to_train() == []


def test_two_trainers_that_save_one_epoch_leave_one_undamaged_state(rig: TrainerRig) -> None:
    rig.trainer(Traffic(rig.registry, 1)).run()
    winner, loser = (rig.trainer(Traffic(rig.registry, 1)) for _ in range(2))
    winner.learning.session.generator.manual_seed(7)
    winner.run()
    with pytest.raises(ObjectExists):
        loser.run()
    kept = trainer_state.read(rig.registry, rig.lineage)
    assert kept is not None
    assert kept.record.epoch == winner.stages.saver.epoch
    for _ in range(2):
        rig.trainer(Traffic(rig.registry, 1)).run()
    names = {key.split("/")[2] for key in rig.objects.list(Keys.TRAINER_STATE)}
    assert f"{winner.stages.saver.epoch:08d}" not in names, "the loser's data are deleted with the epoch"


def test_a_restart_restores_the_buffer_without_retired_shards(rig: TrainerRig) -> None:
    trainer = rig.trainer(Traffic(rig.registry, 9))
    trainer.run()
    again = rig.trainer(Retrier())
    kept = [span for span in trainer.learning.replay.spans() if span.shard in trainer.learning.ledger.consumed]
    assert again.learning.replay.spans() == kept
    assert 0 < len(kept) < len(trainer.learning.replay.spans())
    assert again.stages.reader.damaged == 0


@pytest.mark.parametrize("damaged", [False, True])
def test_the_trainer_itself_keeps_its_store_bounded(rig: TrainerRig, damaged: bool) -> None:
    registry = rig.registry
    traffic = Traffic(registry, 14, damaged=damaged)
    trainer = rig.trainer(traffic)
    trainer.run()
    assert (trainer.learning.session.steps == 0) is damaged
    left = list(registry.list_shards(1).data_bytes)
    assert left == traffic.written[-len(left) :]
    assert 6 <= len(left) <= 10
    again = rig.trainer(Retrier())
    assert again.learning.ledger.total == 14
    assert again.stages.retention.shards_to_train() == []
    status = registry.trainer_status()
    assert status is not None
    assert status.shards == 14, "deleted shards still count as consumed"


def test_retention_and_cleanup_get_the_stop_request(rig: TrainerRig, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(rig.registry, 1)
    trainer = rig.trainer(traffic)
    seen: list[bool] = []

    def tick(stopping: Callable[[], bool]) -> int:
        traffic.stop()
        seen.append(stopping())
        return 0

    monkeypatch.setattr(trainer.stages.retention, "delete_some", tick)
    monkeypatch.setattr(trainer.stages.orphans, "delete_due", tick)
    trainer.run()
    assert seen == [True, True]


def publish_a_map_outside_the_vocabulary(rig: TrainerRig) -> None:
    """Register a version 1 that is whole, and whose vocabulary map names a token that the target lacks."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rig.registry.fetch_checkpoint(rig.registry.registration(0), folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["d2t"][0] = 10**6
        save_file(tensors, folder / "model.safetensors")
        publish_draft(rig.registry, folder, 1)


FOREIGN_VERSIONS: dict[str, Callable[[TrainerRig], None]] = {
    "an unreadable registration": lambda rig: rig.objects.put(Keys.registration(1), b"{}"),
    "a map outside the vocabulary": publish_a_map_outside_the_vocabulary,
    "a version without files": lambda rig: rig.registry.register(
        rig.registry.registration(0).model_copy(
            update={"version": 1, "checkpoint": Keys.checkpoint(1, "0" * 64), "digest": "0" * 64}
        )
    ),
}


@pytest.mark.parametrize("attack", FOREIGN_VERSIONS.values(), ids=FOREIGN_VERSIONS)
def test_a_foreign_version_does_not_keep_the_trainer_from_starting(
    rig: TrainerRig, attack: Callable[[TrainerRig], None]
) -> None:
    attack(rig)
    trainer = rig.trainer(Traffic(rig.registry, 1))
    assert trainer.stages.offering.candidates.last.version == 0
    trainer.run()
    assert trainer.learning.ledger.total == 1
