"""The operator notes by its own clock when the trainer's record changes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aurora_operator.kubernetes_api import JOB
from tests.unit.operator.rest_rig import RestRig


def jobs(rig: RestRig) -> list[str]:
    return [name for kind, name in rig.cluster.objects if kind == JOB.kind]


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
