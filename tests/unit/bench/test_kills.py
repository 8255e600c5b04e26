"""The audit of a killed trainer finds what a kill could do, and the curve is read between saved states."""

from __future__ import annotations

import pytest

from aurora_protocol.draft_records import FileRef
from aurora_protocol.training_records import TrainerState
from aurora_runtime.training.lineage import utc_now
from tests.bench.kills import Trained, Watch, audit, table
from tests.bench.learning.learner import Look

FRESH = {"a": 10, "b": 20, "c": 30}


def state(epoch: int, consumed: str, positions: int | None = None) -> TrainerState:
    return TrainerState(
        epoch=epoch,
        lineage=1,
        step=epoch,
        trained_tokens=sum(FRESH.get(key, 0) for key in consumed) if positions is None else positions,
        consumed=tuple(consumed),
        file=FileRef(name="state.safetensors", sha256="0" * 64, size=1),
        created=utc_now(),
    )


def test_shards_that_are_learnt_from_once_each_are_in_order() -> None:
    assert audit([state(1, "a"), state(2, "ab"), state(4, "abc")], FRESH) == []
    assert audit([state(1, "acb")], FRESH) == []


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([state(1, "ab"), state(2, "abcb")], "twice"),
        ([state(1, "ab"), state(2, "acb")], "forgot"),
        ([state(1, "ab"), state(2, "abc", 70)], "counts 70 positions"),
        ([state(1, "ac")], "1 shards were never learnt from"),
        ([], "3 shards were never learnt from"),
        ([state(1, "abcd")], "nobody wrote"),
    ],
)
def test_what_a_kill_could_do_is_found(states: list[TrainerState], says: str) -> None:
    assert any(says in wrong for wrong in audit(states, FRESH))


def test_the_curve_is_read_between_saved_states() -> None:
    watch = Watch.__new__(Watch)
    watch.looks = [Look(100, 1, (10,), (10,)), Look(200, 2, (10,), (20,))]
    assert [watch.accept_length_at(at) for at in (50, 100, 150, 200, 300)] == [1.0, 1.0, 1.5, 2.0, 2.0]


def test_the_table_tells_what_was_learnt_from_and_what_was_wrong() -> None:
    watch = Watch.__new__(Watch)
    watch.states = [state(1, "a"), state(2, "ab")]
    watch.looks = [Look(10, 1, (10,), (10,)), Look(30, 2, (10,), (20,))]
    head, _, row = table({"killed": Trained(watch, FRESH, [], audit(watch.states, FRESH), 7.0)}).splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert head.count("|") == row.count("|")
    assert cells[:6] == ["killed", "2 of 3", "30 of 60", "2", "2", "1 shards were never learnt from"]
    assert cells[6:] == ["1.25", "2.00", "2.00", "2.00", "7"]
