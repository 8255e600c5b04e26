"""A measurement holds its lock and has a folder until it ends, and then names the origin of its figures."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.bench.bench_command import measuring, new_file


@pytest.fixture(autouse=True)
def settings_of_the_process() -> Iterator[None]:
    """A measurement changes the process. The tests after it must not see that."""
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)


def is_locked(lock: Path) -> bool:
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_the_lock_and_the_folder_last_as_long_as_the_measurement(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with measuring("tests.bench.served.arms", lock) as measurement:
        assert measurement.folder.is_dir()
        assert is_locked(lock)
        assert torch.get_num_threads() == 1
    assert not measurement.folder.exists()
    assert not is_locked(lock)


def test_the_origin_names_the_commit_of_the_start_and_the_load_around(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([0.5, 2.0])
    monkeypatch.setattr("tests.bench.bench_command.load_average", lambda: next(loads))
    monkeypatch.setattr("sys.argv", ["bench", "--rounds", "2"])
    with measuring("tests.bench.served", code="abc123") as measurement:
        pass
    assert measurement.origin.startswith("`python -m tests.bench.served --rounds 2`; ")
    assert measurement.origin.endswith("; commit abc123; load before 0.5, after 2.0")


def test_a_measurement_that_is_asked_to_stop_removes_its_folder() -> None:
    with pytest.raises(SystemExit) as stopped, measuring("tests.bench.served", code="abc123") as measurement:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not measurement.folder.exists()


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    assert new_file(str(tmp_path / "rows.json")) == tmp_path / "rows.json"
    for text, reason in ((str(tmp_path), "is a directory"), (str(tmp_path / "no" / "rows.json"), "does not exist")):
        with pytest.raises(argparse.ArgumentTypeError, match=reason):
            new_file(text)
