"""A shard that kills the trainer is quarantined after its second death, and named in the trainer's status."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from aurora_runtime.traces import decode, encode
from aurora_runtime.training.data.shard_deaths import FILE_NAME, ShardDeaths
from aurora_runtime.training.loop import Trainer
from aurora_runtime.training.main import stop_on_signals
from aurora_runtime.training.retry import Retrier
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

KEY, OTHER = "traces/00000001/a.json", "traces/00000001/b.json"


def die(folder: Path, key: str) -> ShardDeaths:
    """A process that dies while it works on ``key``. Returns what the next one knows."""
    ShardDeaths(folder).begin(key)
    return ShardDeaths(folder)


def test_a_shard_is_quarantined_after_the_second_death(tmp_path: Path) -> None:
    once = die(tmp_path, KEY)
    assert (once.quarantined, once.suspects) == ((), True)
    twice = die(tmp_path, KEY)
    assert (twice.quarantined, twice.suspects) == ((KEY,), False)
    assert ShardDeaths(tmp_path).quarantined == (KEY,)


def test_a_success_between_two_deaths_clears_a_shard(tmp_path: Path) -> None:
    survivor = die(tmp_path, KEY)
    survivor.begin(KEY)
    survivor.survived()
    assert die(tmp_path, KEY).quarantined == ()


def test_a_stop_while_the_file_is_written_is_no_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal's handler writes the file too. The write that it interrupted must not undo that."""
    deaths = ShardDeaths(tmp_path)
    replace, signals = os.replace, [deaths.stop]

    def interrupted(*paths: Path) -> None:
        if signals:
            signals.pop()()
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    deaths.begin(KEY)
    assert not ShardDeaths(tmp_path).suspects


def test_a_trainer_that_dies_on_every_shard_keeps_its_traces(tmp_path: Path) -> None:
    """Only two shards are given up. One success shows that the others are good, and quarantine is possible again."""
    shards = [f"traces/00000001/{number}.json" for number in range(4)]
    for shard in shards:
        for _ in range(3):
            known = die(tmp_path, shard)
    assert known.quarantined == tuple(shards[:2])
    known.begin(shards[3])
    known.survived()
    die(tmp_path, shards[2])
    assert ShardDeaths(tmp_path).quarantined == tuple(shards[:3])


def test_a_stop_is_no_death_whatever_the_trainer_does_meanwhile(tmp_path: Path) -> None:
    for _ in range(3):
        deaths = ShardDeaths(tmp_path)
        deaths.begin(KEY)
        deaths.stop()
        deaths.begin(OTHER)
    assert not ShardDeaths(tmp_path).suspects


def test_a_signal_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.update({number: handler}))
    retrier, deaths = Retrier(), ShardDeaths(tmp_path)
    stop_on_signals(retrier, deaths, 3600)
    deaths.begin(KEY)
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert retrier.stopping
    assert not ShardDeaths(tmp_path).suspects


@pytest.mark.parametrize("content", [b"", b"{", b'{"current": 7}', b"[" * 100_000])
def test_a_damaged_file_costs_the_memory_only(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    assert die(tmp_path, KEY).suspects


def test_without_a_folder_nothing_is_remembered(tmp_path: Path) -> None:
    assert not die(tmp_path / "missing", KEY).suspects


class Killed(BaseException):
    """The end of the process, which no handler of errors stops."""


def test_a_trainer_outlives_a_shard_that_kills_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = TrainerRig(tmp_path / "target")
    deadly = encode([tiny.trace(seed) for seed in (7, 8)])
    good = [tiny.put_shard(rig.registry, seq, [tiny.trace(seq)]) for seq in (0, 2)]
    killer = tiny.put_shard(rig.registry, 1, [tiny.trace(seed) for seed in (7, 8)])
    deaths = 0

    def killing(data: bytes) -> object:
        nonlocal deaths
        if data == deadly:
            deaths += 1
            raise Killed
        return decode(data)

    monkeypatch.setattr("aurora_runtime.training.data.shards.decode", killing)

    def trainer() -> Trainer:
        return rig.trainer(Traffic(rig.registry, 0), ShardDeaths(tmp_path))

    for _ in range(2):
        with pytest.raises(Killed):
            trainer().run()
    survivor = trainer()
    survivor.run()
    assert deaths == 2
    assert set(survivor.learning.ledger.consumed) == {*good, killer}
    status = rig.registry.trainer_status()
    assert status is not None
    assert killer in status.message
    again = trainer()
    again.run()
    assert deaths == 2, "its state names the shard as consumed"
    assert dataclasses.asdict(again.learning.ledger.listing)["data_bytes"].keys() == {*good, killer}
