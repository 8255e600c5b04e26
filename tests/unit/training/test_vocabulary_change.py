"""The real trainer changes its vocabulary map once when traffic asks for it, between shards, and resumes with it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from aurora_protocol.draft_records import CheckpointManifest, FileRef
from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.training import lineage, loop, main, vocabulary_coverage
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import trainer_state
from aurora_runtime.training.state.retention import Limits
from tests.unit.training import tiny
from tests.unit.training.state.test_bounded_store import Real

LATE = 150
SHARDS = 6
CHANGES_AT = 2
"""The shard with which enough answer tokens are counted."""


class Answers(Retrier):
    """Each time the trainer waits it gets a shard of traffic that the first ids cover badly, until it had ``count``."""

    def __init__(self, real: Real, count: int) -> None:
        super().__init__()
        self.real, self.count = real, count
        self.waits = 0

    def sleep(self, seconds: float) -> None:
        self.waits += 1
        number = len(list(self.real.registry.shard_keys(1)))
        if number == self.count:
            self.stop()
            return
        first = 20 * number
        tiny.put_shard(
            self.real.registry, number, [tiny.trace(s, answer=40, least=LATE) for s in range(first, first + 20)]
        )


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Real:
    made = Real(tmp_path, monkeypatch)
    monkeypatch.setattr(vocabulary_coverage, "LEAST", 1000)
    monkeypatch.setattr(main, "limits_of", lambda _: Limits.of(1 << 30, 1 << 29))
    return made


def learnt(trainer: loop.Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.session.state().items()}


def test_a_map_that_covers_badly_is_changed_once_and_said(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = real.trainer(Answers(real, SHARDS))
    first = trainer.session.vocabulary.to_target
    maps, told = list[tuple[int, Tensor]](), set[str]()
    original = trainer._between

    def between(phase: TrainerPhase) -> None:
        original(phase)
        maps.append((trainer.ledger.total, trainer.session.vocabulary.to_target))
        status = real.registry.trainer_status()
        assert status is not None
        told.add(status.message)

    monkeypatch.setattr(trainer, "_between", between)
    trainer.run()
    assert all(torch.equal(ids, first) for total, ids in maps if total < CHANGES_AT)
    after = [ids for total, ids in maps if total >= CHANGES_AT]
    assert all(torch.equal(ids, after[0]) for ids in after), "once"
    assert not torch.equal(after[0], first)
    assert {398, 399} <= set(after[0].tolist())
    (message,) = told - {""}
    assert message.startswith("vocabulary map changed: covers ")
    status = real.registry.trainer_status()
    assert status is not None
    assert status.vocabulary_coverage is not None
    assert status.vocabulary_coverage > 0.9
    assert trainer.session.steps > 0


def test_a_trainer_that_was_stopped_after_the_change_learns_what_an_undisturbed_one_learns(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = real.trainer(Answers(real, SHARDS))
    undisturbed.run()
    other = Real(tmp_path, monkeypatch)
    monkeypatch.setattr(main, "limits_of", lambda _: Limits.of(1 << 30, 1 << 29))
    other.trainer(Answers(other, CHANGES_AT)).run()
    stopped = other.trainer(Answers(other, SHARDS))
    assert int(stopped.session.vocabulary.to_draft[LATE]) < LATE, "it has the changed map already"
    stopped.run()
    assert stopped.ledger.total == undisturbed.ledger.total == SHARDS
    mine, theirs = learnt(stopped), learnt(undisturbed)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(
        torch.equal(a, b)
        for a, b in zip(stopped.tally.state().values(), undisturbed.tally.state().values(), strict=True)
    )


def test_a_state_from_before_maps_could_change_is_of_the_version_that_was_then_the_last(
    real: Real, tmp_path: Path
) -> None:
    """Although a version with another map was registered since, and the state that knew of it is lost."""
    trainer = real.trainer(Answers(real, 1))
    trainer.run()
    first = trainer.session.vocabulary.to_target
    kept = trainer_state.read(real.registry, 1)
    assert kept is not None
    data = save({n: t for n, t in kept.tensors.items() if n != "vocabulary" and not n.startswith("tally")})
    file = FileRef(name=kept.record.file.name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    epoch = kept.record.epoch + 1
    real.registry.put_trainer_state(kept.record.model_copy(update={"epoch": epoch, "file": file}), data)
    ids = torch.arange(tiny.VOCAB - tiny.DRAFT_VOCAB, tiny.VOCAB)
    exported = checkpoint.export(trainer.session.draft, ids, tmp_path / "next")
    manifest = CheckpointManifest(
        lineage=1,
        version=1,
        digest=exported.digest,
        files=exported.files,
        step=1,
        trained_tokens=1,
        provenance={},
        created=lineage.utc_now(),
    )
    lineage.publish(real.registry, tmp_path / "next", manifest)
    again = real.trainer(Retrier())
    assert again.epoch == epoch
    assert again.candidates.last.version == 1
    assert torch.equal(again.session.vocabulary.to_target, first)
    assert torch.equal(again.session.draft.lm_head.weight, trainer.session.draft.lm_head.weight)


def test_who_waits_saves_what_it_learnt_where_saves_take_too_long_for_one_who_trains(
    real: Real, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_S", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", 1e-9)
    monkeypatch.setattr(loop, "IDLE_SAVE_SHARE", 1e9)
    epochs: list[tuple[int, int]] = []

    class Watched(Answers):
        def sleep(self, seconds: float) -> None:
            record = trainer_state.record_of(self.real.registry, 1)
            epochs.append((len(record.consumed) if record else 0, self.real.registry.last_trainer_state_epoch()))
            if len(epochs) != 3:  # the third time it waits on for nothing
                super().sleep(seconds)

    real.trainer(Watched(real, 3)).run()
    assert [consumed for consumed, _ in epochs] == [0, 1, 2, 2, 3]
    assert epochs[2] == epochs[3], "and what did not change is not saved again"
