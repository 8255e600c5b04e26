"""The demo cleans up whatever happens, says why it failed, and prints its results after the view.

The cluster, the installation and the clients are fakes: the real ones take minutes (`make demo`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.command import CommandError
from tests.demo import __main__ as demo
from tests.demo.jobs import Job
from tests.rig.installation import StoreAccess
from tests.traffic.report import Summary
from tests.unit.demo.show.states import resource, traffic


def look(version: int, **status: Any) -> dict[str, Any]:
    pods = [{"name": f"chat-{number}", "version": version, "checksum": "c0ffee"} for number in range(2)]
    return resource(
        active={"version": version},
        **{"readyReplicas": 2, "pods": pods, "rollout": {"phase": "Idle"}, "training": {"step": 3}, **status},
    )


LOOP = [
    look(0),
    look(0, candidate={"version": 1, "phase": "Validating"}),
    look(0, candidate={"version": 1, "phase": "Validated"}, rollout={"phase": "Canary", "version": 1, "total": 2}),
    look(1, candidate={"version": 1, "phase": "Validated"}),
]


@dataclass
class FakeCluster:
    """A cluster that notes what is done to it."""

    created: bool = True
    calls: list[str] = field(default_factory=list)
    kubeconfig: Path = Path("/demo/kubeconfig")

    @property
    def access(self) -> Any:
        return SimpleNamespace(created=self.created, tools=None)

    def kubectl(self, *arguments: str, timeout_seconds: float = 120) -> str:
        self.calls.append(f"kubectl {arguments[0]}")
        return f"kubectl {' '.join(arguments)}"

    def down(self) -> None:
        self.calls.append("down")


@dataclass
class FakeInstallation:
    """An installation whose resource goes through the given looks."""

    cluster: FakeCluster
    looks: Iterator[dict[str, Any]]
    error: BaseException | None = None
    namespace: str = "default"
    last: dict[str, Any] = field(default_factory=dict)

    def install(self) -> None:
        if self.error is not None:
            raise self.error

    def apply(self, name: str, spec: dict[str, Any]) -> Path:
        return Path("/tmp/speculator.json")  # noqa: S108

    def wait_until(self, name: str, description: str, condition: Any, timeout_seconds: float) -> None:
        assert condition(look(0))

    def store(self) -> StoreAccess:
        return StoreAccess("http://store", "", "")

    def url(self, name: str) -> str:
        return "http://chat"

    def get(self, name: str) -> dict[str, Any]:
        self.last = next(self.looks, self.last)
        return self.last


@dataclass
class World:
    """The fakes, and how the demo ends among them."""

    cluster: FakeCluster
    installation: FakeInstallation
    final_traffic: Summary = field(default_factory=lambda: traffic(60, 2700, 40))
    traffic_stopped: bool = False

    def start(self) -> None:
        pass

    def summary(self) -> Summary:
        return self.final_traffic

    def stop(self) -> Summary:
        self.traffic_stopped = True
        return self.final_traffic


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    cluster = FakeCluster()
    fakes = World(cluster, FakeInstallation(cluster, iter(LOOP)))
    monkeypatch.setattr(sys, "argv", ["tests.demo"])
    monkeypatch.delenv("KEEP", raising=False)
    replaced = {
        "LOGS": tmp_path,
        "LOOK_SECONDS": 0.0,
        "exit_on_stop_signals": lambda: None,
        "preparations": lambda: [Job(name, ("true",)) for name in ("prerequisites", "kubernetes", "model")],
        "Cluster": SimpleNamespace(up=lambda name: cluster),
        "Installation": lambda cluster: fakes.installation,
        "TrafficDriver": lambda load: fakes,
        "evidence_table": lambda evidence: f"Evidence: {evidence}",
        "read_evidence": lambda aurora, name, version: version,
        "check_objects": lambda aurora, name: "store: every object is valid",
        "write_report": lambda name, namespace, file, tools, endpoint: f"report: {file}",
    }
    for name, value in replaced.items():
        monkeypatch.setattr(demo, name, value)
    return fakes


def test_a_demo_that_succeeds_prints_its_results_and_removes_its_cluster(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert demo.main() == 0
    printed = capsys.readouterr()
    assert "version 1 is the active draft" in printed.out
    results = printed.out.split("cluster stopped and removed\n")[1]
    assert "Evidence: 1" in results
    assert f"report: {tmp_path}/report.html" in results
    assert results.endswith("done: version 1 was measured faster and serves on every pod\n")
    assert printed.err.strip() == ""
    assert world.cluster.calls[-1] == "down"
    assert world.traffic_stopped


def test_a_cluster_that_ran_before_and_a_cluster_to_keep_stay(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.cluster.created = False
    assert demo.main() == 0
    world.cluster.created, world.installation.looks = True, iter(LOOP)
    monkeypatch.setenv("KEEP", "1")
    assert demo.main() == 0
    assert "KEEP=1: the cluster keeps running; export KUBECONFIG=/demo/kubeconfig" in capsys.readouterr().out
    assert "down" not in world.cluster.calls


def test_a_failure_names_its_stage_and_saves_logs_before_the_cluster_is_removed(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    world.installation.error = CommandError(["helm", "upgrade"], 1, "", "the operator is not ready")
    assert demo.main() == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "failed: operator and store"
    assert printed[1] == "  what happened: helm upgrade exited 1: the operator is not ready"
    assert "kubectl get pods -A -o wide" in (tmp_path / "cluster.log").read_text()
    assert world.cluster.calls[-1] == "down"


def test_an_error_of_the_demos_own_code_keeps_its_traceback_results_and_logs(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> str:
        raise TypeError("a bug")

    monkeypatch.setattr(demo, "check_objects", broken)
    with pytest.raises(TypeError, match="a bug"):
        demo.main()
    assert "report: " in capsys.readouterr().out
    assert (tmp_path / "cluster.log").exists()
    assert world.cluster.calls[-1] == "down"


def test_logs_that_cannot_be_saved_do_not_hide_the_failure(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cluster.log").mkdir()
    world.installation.error = KeyError("status")
    assert demo.main() == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[1] == "  what happened: KeyError: 'status'"
    assert "the logs of the cluster were not saved" in printed.out
    assert world.cluster.calls[-1] == "down"


def test_ctrl_c_during_the_results_does_not_wait_for_the_check_of_the_store(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = threading.Event()

    def check_objects(aurora: Any, name: str) -> str:
        removed.wait(10)
        world.cluster.calls.append("checked")
        return "store: every object is valid"

    def write_report(*_: Any) -> str:
        raise KeyboardInterrupt

    def down() -> None:
        world.cluster.calls.append("down")
        removed.set()

    monkeypatch.setattr(demo, "check_objects", check_objects)
    monkeypatch.setattr(demo, "write_report", write_report)
    monkeypatch.setattr(world.cluster, "down", down)
    assert demo.main() == 128 + signal.SIGINT
    assert next(call for call in world.cluster.calls if call in {"checked", "down"}) == "down"


def test_ctrl_c_does_not_interrupt_the_removal_of_the_cluster(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def down() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        world.cluster.calls.append("down")

    monkeypatch.setattr(world.cluster, "down", down)
    assert demo.main() == 0
    assert world.cluster.calls[-1] == "down"
    assert signal.getsignal(signal.SIGINT) is before
    assert "removing the cluster; Ctrl-C does not interrupt this" in capsys.readouterr().out


def test_a_preparation_that_fails_is_named_with_its_log_and_the_cluster_is_removed(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Job("prerequisites", ("true",)), Job("kubernetes", ("true",))]
    late = Job("model", ("/bin/sh", "-c", "sleep 0.5; echo disk full; exit 1"))
    monkeypatch.setattr(demo, "preparations", lambda: [*jobs, late])
    assert demo.main() == 1
    printed = capsys.readouterr().err
    assert printed.startswith("failed: model SmolLM2-135M-Instruct\n")
    assert "disk full" in printed
    assert world.cluster.calls[-1] == "down"


def test_failed_requests_fail_the_demo_with_its_results(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.final_traffic = traffic(60, 2700, 40, failed=2)
    assert demo.main() == 1
    printed = capsys.readouterr()
    assert "traffic: 40 requests, 2 failed" in printed.out
    assert "2 requests failed, and a swap must break none" in printed.err


def test_a_draft_that_is_not_learned_in_time_fails_in_the_stage_that_it_reached(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "BUDGET_SECONDS", 0.0)
    world.installation.looks = iter([look(0, candidate={"version": 1, "phase": "Validating"})])
    assert demo.main() == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("failed: the gate measures a candidate\n")
    assert "no candidate passed the gate" in printed.err
    assert "store: every object is valid" in printed.out


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 128 + signal.SIGINT), (SystemExit(143), 143)])
def test_an_interruption_removes_the_cluster(
    world: World, stop: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    world.installation.error = stop
    assert demo.main() == status
    assert capsys.readouterr().err.startswith("stopped in: operator and store\n")
    assert world.cluster.calls == ["down"]
