"""Live traffic is counted version by version, and a checkpoint is the version that the pod serves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_protocol.agent_api import AgentState, LiveCounters, SwapPhase, SwapRequest, SwapStatus
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.draft_fetch import FetchedDraft
from tests.bench.served import live_training
from tests.bench.served.live_training import (
    PERIODS_FILE,
    RECORD_FILE,
    Checkpoint,
    LiveService,
    TrafficPart,
    TrainingRecord,
    VersionPeriod,
    train_on_live_traffic,
)


class FakePod:
    """Stands in for a pod. Every requested swap succeeds, or fails when ``broken``."""

    def __init__(self) -> None:
        self.version, self.counters, self.broken = 0, LiveCounters(), False

    def request_swap(self, request: SwapRequest) -> int:
        self.version = self.version if self.broken else request.version
        return 202

    def wait_until_swap_ends(self) -> AgentState:
        return self.state()

    def state(self) -> AgentState:
        phase = SwapPhase.FAILED if self.broken else SwapPhase.IDLE
        swap = SwapStatus(phase=phase, error="of the test" if self.broken else "")
        return AgentState(pod="pod-0", boot="b", engine_ready=True, version=self.version, live=self.counters, swap=swap)


class FakeRegistry:
    """Stands in for the registry. ``newest`` is the version that the trainer registered last."""

    newest: int | None = None

    def last_version(self) -> int | None:
        return self.newest

    def registration(self, version: int) -> Any:
        return SimpleNamespace(digest=f"{version:064x}")


def live_service(tmp_path: Path) -> tuple[LiveService, FakePod, FakeRegistry]:
    pod, registry = FakePod(), FakeRegistry()
    service = LiveService(cast(Any, None), cast(Any, registry), cast(Any, pod), cast(Any, None), tmp_path, 64)
    return service, pod, registry


def test_every_version_has_its_own_period(tmp_path: Path) -> None:
    service, pod, registry = live_service(tmp_path)
    service._swap_to_newest(10)
    assert (pod.version, service.periods) == (0, []), "no version was registered"
    registry.newest = 2
    pod.counters = LiveCounters(verify_rounds=100, accepted=1)
    service._swap_to_newest(1_400)
    assert pod.version == 2
    pod.counters = LiveCounters(verify_rounds=300, accepted=401)
    service._swap_to_newest(3_000)
    assert len(service.periods) == 1, "the newest version is served already"
    service._end_period(3_500, pod.counters)
    assert service.periods == [VersionPeriod(0, 1_400, 1.01), VersionPeriod(2, 3_500, 3.0)]
    service._end_period(3_500, pod.counters)
    assert service.periods[-1].acceptance_length is None, "there was no round since"


def test_a_swap_that_fails_ends_the_bench(tmp_path: Path) -> None:
    service, pod, registry = live_service(tmp_path)
    registry.newest, pod.broken = 1, True
    with pytest.raises(MeasurementError, match="did not swap to version 1: the agent answered 202, then: of the test"):
        service._swap_to_newest(0)


def test_a_kept_run_is_read_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_training, "seaweedfs", lambda: pytest.fail("the run was repeated"))
    records, periods = (
        [TrainingRecord(0, 0, 0, 0, 0.5, 0, 0.0), TrainingRecord(19_950, 600, 700, 340_000, 350.0, 4, 90.0)],
        [VersionPeriod(0, 19_950, 1.5)],
    )
    for number, one in enumerate(records):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / RECORD_FILE).write_text(json.dumps(dataclasses.asdict(one)))
    (tmp_path / PERIODS_FILE).write_text(json.dumps([dataclasses.asdict(one) for one in periods]))
    training = train_on_live_traffic([TrafficPart("json", 20_000)], tmp_path, DraftSpec(), 3, 64)
    assert training.checkpoints == [
        Checkpoint(FetchedDraft(tmp_path / str(n), n), one) for n, one in enumerate(records)
    ]
    assert training.periods == periods


def test_traffic_without_a_new_version_ends_the_bench(tmp_path: Path) -> None:
    service, _, _ = live_service(tmp_path)
    service._kept_version = service._served_version = 3
    with pytest.raises(MeasurementError, match="registered no version after 3"):
        service.keep_checkpoint(tmp_path / "1")
