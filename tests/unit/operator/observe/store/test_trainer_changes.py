"""The operator notes by its own clock when the trainer's record changes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aurora_operator.kubernetes_api import JOB
from aurora_operator.observe.store.trainer_changes import TrainerChanges
from tests.unit.operator.rest_rig import RestRig
from tests.unit.operator.worlds import NOW, trainer_record

SECOND = timedelta(seconds=1)


def jobs(rig: RestRig) -> list[str]:
    return [name for kind, name in rig.cluster.objects if kind == JOB.kind]


@pytest.mark.parametrize("skew", [timedelta(minutes=-6), timedelta(0), timedelta(days=1)], ids=str)
def test_a_change_is_noted_by_the_operators_clock(skew: timedelta) -> None:
    changes = TrainerChanges()
    first, second = (trainer_record(updated=NOW + skew + seconds * SECOND) for seconds in (0, 45))
    assert changes.last_change(None, NOW) is None
    assert changes.last_change(first, NOW + 1 * SECOND) is None, "nobody knows how long it has been there"
    assert changes.last_change(first, NOW + 60 * SECOND) is None
    assert changes.last_change(second, NOW + 120 * SECOND) == NOW + 120 * SECOND
    assert changes.last_change(None, NOW + 150 * SECOND) is None, "the store cannot be read"
    assert changes.last_change(second, NOW + 180 * SECOND) == NOW + 120 * SECOND


def test_a_clock_that_is_set_back_changes_the_record_too() -> None:
    changes = TrainerChanges()
    changes.last_change(trainer_record(updated=NOW), NOW)
    assert changes.last_change(trainer_record(updated=NOW - 9 * SECOND), NOW + SECOND) == NOW + SECOND


@pytest.mark.parametrize("skew", [timedelta(minutes=-6), timedelta(days=1)], ids=str)
async def test_a_trainer_with_a_wrong_clock_counts_as_present_until_its_reports_end(
    skew: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = RestRig(monkeypatch)

    def report() -> None:
        rig.train(updated=rig.clock.now + skew, held_out_requests=0)

    report()
    await rig.run(180, report)
    assert rig.reason("TrainerReady") == "WaitingForTraces"
    rig.register(1)
    await rig.run(1200, report)
    assert rig.reason("TrainerReady") == "WaitingForTraces"
    assert not jobs(rig), "the measurement waits for held-out requests"
    await rig.run(480)
    assert rig.reason("TrainerReady") == "Silent"
    assert jobs(rig), "nobody reports a count any more"
