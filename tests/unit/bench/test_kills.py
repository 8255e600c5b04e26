"""The audit of a killed trainer finds every fault of a kill. Acceptance lengths are interpolated between states."""

from __future__ import annotations

import pytest

from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import TrainerState
from aurora_runtime.training.lineage import utc_now
from tests.bench.kills import StateWatcher, TrainingRun, audit_states, table
from tests.bench.learning.learner import Evaluation

SHARD_POSITIONS = {"a": 10, "b": 20, "c": 30}


def state(epoch: int, consumed: str, positions: int | None = None) -> TrainerState:
    return TrainerState(
        epoch=epoch,
        lineage=1,
        step=epoch,
        trained_tokens=sum(SHARD_POSITIONS.get(key, 0) for key in consumed) if positions is None else positions,
        consumed=tuple(consumed),
        file=FileRef(name="state.safetensors", sha256="0" * 64, size=1),
        created=utc_now(),
    )


def test_states_that_learned_from_each_shard_once_pass_the_audit() -> None:
    assert audit_states([state(1, "a"), state(2, "ab"), state(4, "abc")], SHARD_POSITIONS) == []
    assert audit_states([state(1, "acb")], SHARD_POSITIONS) == []


@pytest.mark.parametrize(
    ("states", "fault"),
    [
        ([state(1, "ab"), state(2, "abcb")], "twice"),
        ([state(1, "ab"), state(2, "acb")], "forgot"),
        ([state(1, "ab"), state(2, "abc", 70)], "counts 70 positions"),
        ([state(1, "ac")], "1 shards were never learned from"),
        ([], "3 shards were never learned from"),
        ([state(1, "abcd")], "were never written"),
    ],
)
def test_faults_that_a_kill_could_cause_are_found(states: list[TrainerState], fault: str) -> None:
    assert any(fault in found for found in audit_states(states, SHARD_POSITIONS))


def test_the_acceptance_length_is_interpolated_between_saved_states() -> None:
    watcher = StateWatcher.__new__(StateWatcher)
    watcher.evaluations = [Evaluation(100, 1, (10,), (10,)), Evaluation(200, 2, (10,), (20,))]
    assert [watcher.acceptance_length_at(at) for at in (50, 100, 150, 200, 300)] == [1.0, 1.0, 1.5, 2.0, 2.0]


def test_the_table_shows_the_learned_shards_and_the_faults() -> None:
    watcher = StateWatcher.__new__(StateWatcher)
    watcher.states = [state(1, "a"), state(2, "ab")]
    watcher.evaluations = [Evaluation(10, 1, (10,), (10,)), Evaluation(30, 2, (10,), (20,))]
    head, _, row = table(
        {"killed": TrainingRun(watcher, SHARD_POSITIONS, audit_states(watcher.states, SHARD_POSITIONS), 7.0)}
    ).splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert head.count("|") == row.count("|")
    assert cells[:6] == ["killed", "2 of 3", "30 of 60", "2", "2", "1 shards were never learned from"]
    assert cells[6:] == ["1.25", "2.00", "2.00", "2.00", "7"]
