"""The real trainer changes its vocabulary map once, between two shards, and resumes with the new map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.training import vocabulary_coverage
from aurora_runtime.training.loop import Trainer
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state.retention import RetentionLimits
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import TrainerRig

LATE = 150
SHARDS = 6
CHANGES_AT = 2
"""The shard with which enough answer tokens are counted."""


class UncoveredTraffic(Retrier):
    """Each wait of the trainer delivers a shard that the initial map covers poorly, until ``count`` shards exist."""

    def __init__(self, rig: TrainerRig, count: int) -> None:
        super().__init__()
        self.rig, self.count = rig, count
        self.waits = 0

    def sleep(self, seconds: float) -> None:
        self.waits += 1
        number = len(self.rig.registry.list_shards(1).data_bytes)
        if number == self.count:
            self.stop()
            return
        first = 20 * number
        tiny.put_shard(
            self.rig.registry, number, [tiny.trace(s, answer=40, least=LATE) for s in range(first, first + 20)]
        )


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerRig:
    monkeypatch.setattr(vocabulary_coverage, "MIN_TOKENS_BEFORE_CHANGE", 1000)
    return roomy_rig(tmp_path)


def roomy_rig(folder: Path) -> TrainerRig:
    """A trainer whose store has room for all shards."""
    rig = TrainerRig(folder)
    rig.limits = RetentionLimits.of(1 << 30, 1 << 29)
    return rig


def session_tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.learning.session.state().items()}


def test_a_map_with_poor_coverage_is_changed_once_and_reported(
    rig: TrainerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = rig.trainer(UncoveredTraffic(rig, SHARDS))
    first = trainer.learning.session.vocabulary.to_target
    maps, messages = list[tuple[int, Tensor]](), set[str]()
    original = trainer.run_due_stages

    def run_due_stages(phase: TrainerPhase) -> None:
        original(phase)
        maps.append((trainer.learning.ledger.total, trainer.learning.session.vocabulary.to_target))
        status = rig.registry.trainer_status()
        assert status is not None
        messages.add(status.message)

    monkeypatch.setattr(trainer, "run_due_stages", run_due_stages)
    trainer.run()
    assert all(torch.equal(ids, first) for total, ids in maps if total < CHANGES_AT)
    after = [ids for total, ids in maps if total >= CHANGES_AT]
    assert all(torch.equal(ids, after[0]) for ids in after), "the map changed once"
    assert not torch.equal(after[0], first)
    assert {398, 399} <= set(after[0].tolist())
    (message,) = messages - {""}
    assert message
    assert trainer.learning.session.steps > 0


def test_a_trainer_stopped_after_a_map_change_resumes_identically(rig: TrainerRig, tmp_path: Path) -> None:
    undisturbed = rig.trainer(UncoveredTraffic(rig, SHARDS))
    undisturbed.run()
    other = roomy_rig(tmp_path)
    other.trainer(UncoveredTraffic(other, CHANGES_AT)).run()
    stopped = other.trainer(UncoveredTraffic(other, SHARDS))
    assert int(stopped.learning.session.vocabulary.to_draft[LATE]) < LATE, (
        "the stopped trainer resumes with the changed map"
    )
    stopped.run()
    assert stopped.learning.ledger.total == undisturbed.learning.ledger.total == SHARDS
    resumed, whole = session_tensors(stopped), session_tensors(undisturbed)
    assert all(torch.equal(resumed[name], whole[name]) for name in resumed)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            stopped.learning.coverage.state().values(), undisturbed.learning.coverage.state().values(), strict=True
        )
    )
