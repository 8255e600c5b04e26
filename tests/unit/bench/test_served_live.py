"""Live traffic is accounted for version by version, and a checkpoint is what the pod serves."""

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
from tests.bench.served import live
from tests.bench.served.live import FACTS, Checkpoint, Learnt, Part, Seen, Service


class ObedientPod:
    """Stands in for a pod that swaps to whatever it is told, or fails to."""

    def __init__(self) -> None:
        self.version, self.counters, self.broken = 0, LiveCounters(), False

    def request_swap(self, wish: SwapRequest) -> int:
        self.version = self.version if self.broken else wish.version
        return 202

    def wait_until_swap_ends(self) -> AgentState:
        return self.state()

    def state(self) -> AgentState:
        phase = SwapPhase.FAILED if self.broken else SwapPhase.IDLE
        swap = SwapStatus(phase=phase, error="of the test" if self.broken else "")
        return AgentState(pod="pod-0", boot="b", engine_ready=True, version=self.version, live=self.counters, swap=swap)


class Versions:
    """Stands in for the registry: ``newest`` is what the trainer offered last."""

    newest: int | None = None

    def last_version(self) -> int | None:
        return self.newest

    def registration(self, version: int) -> Any:
        return SimpleNamespace(digest=f"{version:064x}")


def service(tmp_path: Path) -> tuple[Service, ObedientPod, Versions]:
    pod, versions = ObedientPod(), Versions()
    return Service(cast(Any, None), cast(Any, versions), cast(Any, pod), cast(Any, None), tmp_path, 64), pod, versions


def test_every_version_has_its_own_account(tmp_path: Path) -> None:
    made, pod, versions = service(tmp_path)
    made._follow(10)
    assert (pod.version, made.seen) == (0, []), "nothing was offered"
    versions.newest = 2
    pod.counters = LiveCounters(verify_rounds=100, accepted=1)
    made._follow(1_400)
    assert pod.version == 2
    pod.counters = LiveCounters(verify_rounds=300, accepted=401)
    made._follow(3_000)
    assert len(made.seen) == 1, "the newest is served already"
    made._account(3_500, pod.counters)
    assert made.seen == [Seen(0, 1_400, 1.01), Seen(2, 3_500, 3.0)]
    made._account(3_500, pod.counters)
    assert made.seen[-1].accept_length is None, "no rounds since"


def test_a_swap_that_fails_ends_the_bench(tmp_path: Path) -> None:
    made, pod, versions = service(tmp_path)
    versions.newest, pod.broken = 1, True
    with pytest.raises(MeasurementError, match="no swap to version 1: status 202, of the test"):
        made._follow(0)


def test_what_was_served_is_not_served_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "seaweedfs", lambda: pytest.fail("served again"))
    facts, told = (
        [Learnt(0, 0, 0, 0, 0.5, 0, 0.0), Learnt(19_950, 600, 700, 340_000, 350.0, 4, 90.0)],
        [Seen(0, 19_950, 1.5)],
    )
    for number, one in enumerate(facts):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / FACTS).write_text(json.dumps(dataclasses.asdict(one)))
    (tmp_path / "live.json").write_text(json.dumps([dataclasses.asdict(one) for one in told]))
    drafts, seen = live.checkpoints([Part("json", 20_000)], tmp_path, DraftSpec(), 3, 64)
    assert drafts == [Checkpoint(FetchedDraft(tmp_path / str(n), n), one) for n, one in enumerate(facts)]
    assert seen == told


def test_traffic_that_taught_nothing_ends_the_bench(tmp_path: Path) -> None:
    made, _, _ = service(tmp_path)
    made._kept = made._version = 3
    with pytest.raises(MeasurementError, match="no version was offered after 3"):
        made.keep(tmp_path / "1")
