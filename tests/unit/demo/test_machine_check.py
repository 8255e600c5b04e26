"""The demo says before it begins why it cannot run on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local.cluster import LocalCluster
from tests.demo import machine_check, start
from tests.demo.machine_check import GIB, MIN_MEMORY_GIB, obstacles


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with empty folders on this one's disk, and with enough memory. The paths are short, for sockets."""
    monkeypatch.setattr(machine_check, "_memory_bytes", lambda: 24 * GIB)
    monkeypatch.setattr(machine_check, "CACHE_GIB", 0)
    monkeypatch.setattr(machine_check, "IMAGES_GIB", 0)
    monkeypatch.setattr(machine_check, "LATER_RUN_GIB", 0)
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


def test_too_little_disk_is_named_until_the_folders_are_filled(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "CACHE_GIB", 1 << 30)
    monkeypatch.setattr(machine_check, "IMAGES_GIB", 1 << 20)
    (both,) = obstacles({})
    assert f"needs {(1 << 30) + (1 << 20)} GiB of free disk for {machine}/cache and {machine}/clusters/demo" in both
    (machine / "cache" / "cluster" / "1a2b" / "bin").mkdir(parents=True)
    assert [f"needs {1 << 20} GiB" in one for one in obstacles({})] == [True]
    (machine / "clusters" / "demo" / "containerd").mkdir(parents=True)
    assert obstacles({}) == []


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

    checks: list[list[str]] = [[], ["the cluster of an earlier demo runs"]]
    monkeypatch.setattr(start, "obstacles", lambda environment: checks.pop(0))
    monkeypatch.setattr(start, "exit_on_stop_signals", lambda: None)
    monkeypatch.setattr(start, "prepare_and_show", show)
    assert start.main() == 0
    assert inner == [1]
    assert "another `make demo` runs" in capsys.readouterr().err
