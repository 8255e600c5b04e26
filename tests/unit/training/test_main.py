"""The trainer's program erases tags before it trains, also while training is suspended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.request_privacy import tag_hash
from aurora_runtime.training import main
from aurora_runtime.training.retry import Retrier
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import TrainerRig


class StopsAtItsFirstWait(Retrier):
    def sleep(self, seconds: float) -> None:
        self.stop()


@pytest.mark.parametrize("suspended", [True, False])
def test_a_tag_is_erased_and_reported_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, suspended: bool
) -> None:
    rig = TrainerRig(tmp_path)
    monkeypatch.setattr(main, "load_target", lambda _spec: rig.target)
    tiny.put_shard(rig.registry, 0, [tiny.trace(0), replace(tiny.trace(1), tag=5)])
    training = rig.settings.training.model_copy(update={"erase_tags": [tag_hash(5)], "suspended": suspended})
    settings = rig.settings.model_copy(update={"training": training})
    main.run(settings, rig.registry, StopsAtItsFirstWait(), torch.device("cpu"), None)
    status = rig.registry.trainer_status()
    assert status is not None
    assert status.phase is (TrainerPhase.SUSPENDED if suspended else TrainerPhase.WAITING_FOR_TRACES)
    (report,) = status.erasures
    assert (report.tag, report.traces_removed, report.remaining_traces) == (tag_hash(5), 1, 0)
    assert "erasing" not in status.message
