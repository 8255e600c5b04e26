"""The demo says before it begins why it cannot run on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local.cluster import LocalCluster
from tests.demo import machine_check, start
from tests.demo.machine_check import GIB, LATER_RUN_GIB, MIN_MEMORY_GIB, obstacles


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with empty folders on this one's disk, and with enough memory. The paths are short, for sockets."""
    monkeypatch.setattr(machine_check, "_memory_bytes", lambda: 24 * GIB)
    monkeypatch.setattr(machine_check, "FIRST_RUN_GIB", 0)
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("AURORA_CLUSTER_STATE", f"{folder}/clusters")
        monkeypatch.setenv("AURORA_CACHE", f"{folder}/cache")
        yield Path(folder)


def test_nothing_is_in_the_way_of_a_first_run(machine: Path) -> None:
    assert obstacles({}) == obstacles({"CLUSTER": "local"}) == []


def test_another_kind_of_cluster_is_refused(machine: Path) -> None:
    assert ["unset CLUSTER" in one for one in obstacles({"CLUSTER": "kind"})] == [True]


def test_too_little_memory_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "_memory_bytes", lambda: (MIN_MEMORY_GIB - 1) * GIB)
    assert ["24 GB of memory" in one for one in obstacles({})] == [True]


def test_too_little_disk_is_named_for_both_folders(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "FIRST_RUN_GIB", 1 << 30)
    first = obstacles({})
    assert [str(machine / name) in one for name, one in zip(("cache", "clusters"), first, strict=True)] == [True, True]
    (machine / "clusters" / "demo").mkdir(parents=True)
    assert all(f"needs {LATER_RUN_GIB} GiB" in one for one in obstacles({}))


def test_a_kept_cluster_is_named_with_the_command_that_stops_it(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalCluster, "__init__", lambda self, name: None)
    monkeypatch.setattr(LocalCluster, "sandbox", _Running(), raising=False)
    assert ["--name demo down" in one for one in obstacles({})] == [True]


class _Running:
    def holder_pid(self) -> int:
        return 7


def test_a_second_demo_beside_the_first_is_refused(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner: list[int] = []

    def show(started: float) -> int:
        inner.append(start.main())
        return 0

    monkeypatch.setattr(start, "obstacles", lambda environment: [])
    monkeypatch.setattr(start, "exit_on_stop_signals", lambda: None)
    monkeypatch.setattr(start, "prepare_and_show", show)
    assert start.main() == 0
    assert inner == [1]
    assert "another `make demo` runs" in capsys.readouterr().err
