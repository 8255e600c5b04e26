"""Every round of a controller is logged with the estimates of its choice, and engines load the log as a plugin."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from importlib.metadata import DistributionFinder, MetadataPathFinder
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.engine.arms import Source
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.engine.speculation_flags import Eagle3
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.errors import MeasurementError
from aurora_runtime.serving.speculation.controller import Controller
from aurora_runtime.sglang_uses import check_all
from tests.bench.served.__main__ import _options, require_round_logs
from tests.bench.served.lineup import Lineup
from tests.bench.served.round_log import LoggedRounds, RoundLog
from tests.bench.served.round_log_plugin import PLUGIN, LoggingEngineSpec, install
from tests.bench.served.round_log_report import rows
from tests.bench.served.servers import OFF, Arm
from tests.bench.speculation.cost_tables import cpu_milliseconds
from tests.bench.speculation.generated_rounds import DOCSTRINGS, generate
from tests.bench.speculation.regret import ARMS, new_controller, new_noise
from tests.bench.speculation.simulator import PlayedRound, play

SPEC = EngineSpec("target", "cpu", 1024)


def play_with_log(file: Path, monkeypatch: pytest.MonkeyPatch, *, behind: bool = False) -> list[PlayedRound]:
    """Rounds of a controller that is hooked as SGLang hooks it."""
    log = RoundLog(file, ARMS, clock=lambda: 1.5)
    check_all(hooks := log.hooks())
    for hook in hooks:
        name = hook.target.rpartition(".")[2]
        hooked = functools.partialmethod(_call, hook.wrapper, getattr(Controller, name))
        monkeypatch.setattr(Controller, name, hooked)
    traffic = generate(DOCSTRINGS, 12)
    played = list(play(new_controller(), traffic, 4, cpu_milliseconds, new_noise(), behind=behind))
    log.close()
    return played


def _call(controller: object, wrapper: functools.partial[object], original: object, *arguments: object) -> object:
    return wrapper(original, controller, *arguments)


def test_a_log_holds_each_round_with_what_was_expected_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = play_with_log(tmp_path / "rounds.jsonl", monkeypatch)
    logged = LoggedRounds.read(tmp_path / "rounds.jsonl")
    assert logged.arms == tuple(arm.name for arm in sorted(ARMS))
    assert [(one.arm, one.explores, one.tokens) for one in logged.rounds] == [
        (one.arm.name, one.explores, one.tokens) for one in played
    ]
    assert any(one.arm.drafts for one in played)
    for one in logged.rounds:
        assert one.estimates is not None
        assert len(one.estimates.tokens) == len(one.estimates.milliseconds) == len(ARMS)
        assert one.explores or logged.arms[one.estimates.best] == one.arm
        assert (one.at, len(one.requests)) == (1.5, 4)
        for request in one.requests:
            if request.source == Source.LOOKUP:
                assert request.lookup_right >= request.accepted


def test_the_estimates_of_a_round_that_is_observed_one_round_later_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_with_log(tmp_path / "rounds.jsonl", monkeypatch, behind=True)
    logged = LoggedRounds.read(tmp_path / "rounds.jsonl")
    own = [one for one in logged.rounds if not one.explores and one.estimates]
    assert len(own) > len(logged.rounds) / 2
    assert all(one.estimates and logged.arms[one.estimates.best] == one.arm for one in own)


def test_a_process_that_decides_no_round_writes_no_file(tmp_path: Path) -> None:
    log = RoundLog(tmp_path / "rounds.jsonl", ARMS)
    log.around_observe(lambda *_: None, None, None, ["outlook"], [1], 20.0)
    assert not (tmp_path / "rounds.jsonl").exists()


def test_the_report_compares_estimates_with_what_came(tmp_path: Path) -> None:
    def line(milliseconds: float | None, accepted: int, *, pending: int = 0, known: bool = True) -> str:
        estimates = [[1.0, 2.0], [20.0, 25.0], 1] if known else None
        request = ["r", 3, 11, pending, "draft", accepted, 0]
        round_ = {"at": 0, "arm": "draft-2", "explores": False, "milliseconds": milliseconds, "requests": [request]}
        return json.dumps({**round_, "estimates": estimates})

    lines = [
        json.dumps({"arms": ["off", "draft-2"]}),
        line(20.0, 2),
        line(30.0, 0),
        line(None, 2),
        line(50.0, 1, pending=4),
    ]
    (tmp_path / "rounds.jsonl").write_text("\n".join([*lines, line(99.0, 2, known=False)]) + "\n")
    assert list(rows("pod", LoggedRounds.read(tmp_path / "rounds.jsonl"))) == [
        ["pod", 1, "draft-2", 2, 0, "50%", "25.0", "25.0", "2.00", "2.00", "80", "1.000"],
        ["pod", 1, "draft-2, catches up", 1, 0, "50%", "25.0", "50.0", "2.00", "2.00", "40", "0.500"],
    ]


def controlled(folder: Path) -> Eagle3:
    (folder / "controlled-0").mkdir()
    spec = DraftSpec()
    return Eagle3(folder, 0, spec, controller_of(spec, folder / "controlled-0", "bench"))


def test_only_engines_with_a_controller_load_the_log(tmp_path: Path) -> None:
    logging, base = LoggingEngineSpec.of(SPEC, tmp_path / "log"), {"PYTHONPATH": "/before"}
    plain = Eagle3(tmp_path, 0, DraftSpec())
    for speculation in (None, plain):
        assert logging.environment(base, speculation) == SPEC.environment(base, speculation)
    speculation = controlled(tmp_path)
    with_log, without = (one.environment(base, speculation) for one in (logging, SPEC))
    assert with_log["SGLANG_PLUGINS"] == f"{without['SGLANG_PLUGINS']},{PLUGIN}"
    assert with_log["PYTHONPATH"].startswith(f"{without['PYTHONPATH']}{os.pathsep}{tmp_path / 'log'}{os.pathsep}")


def test_the_folder_offers_the_plugin_to_sglang(tmp_path: Path) -> None:
    LoggingEngineSpec.of(SPEC, tmp_path / "log")
    context = DistributionFinder.Context(path=[str(tmp_path / "log")])
    (found,) = MetadataPathFinder.find_distributions(context)
    (entry,) = found.entry_points
    assert (entry.group, entry.name, entry.load()) == ("sglang.srt.plugins", PLUGIN, install)


def test_sglang_loads_the_plugin_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = LoggingEngineSpec.of(SPEC, tmp_path / "log").environment(os.environ, controlled(tmp_path))
    program = """
from sglang.srt.plugins import load_plugins
load_plugins()
from tests.bench.speculation.cost_tables import cpu_milliseconds
from tests.bench.speculation.generated_rounds import PROSE, generate
from tests.bench.speculation.regret import new_controller, new_noise
from tests.bench.speculation.simulator import play
print(len(list(play(new_controller(), generate(PROSE, 1), 1, cpu_milliseconds, new_noise()))))
"""
    environment["SGLANG_PLUGINS"] = PLUGIN  # the others need the engine
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    logged = LoggedRounds.read(tmp_path / "log" / "controlled-0.jsonl")
    assert len(logged.rounds) == int(ran.stdout.splitlines()[-1]) > 0


def test_a_log_needs_a_controller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["served", "--log-rounds", "rounds"])
    with pytest.raises(SystemExit):
        _options()
    assert "--log-rounds needs --controller" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["served", "--log-rounds", "rounds", "--controller"])
    assert _options().log_rounds == Path("rounds")


def test_a_run_without_the_log_that_was_asked_for_fails(tmp_path: Path) -> None:
    """SGLang serves on without a plugin that failed."""
    arms = (Arm("off", OFF), Arm("controller", "controlled-0"))
    lineup = Lineup(arms, {OFF: None}, (), (), controlled=("controller",))
    with pytest.raises(MeasurementError, match="no round was logged"):
        require_round_logs(lineup, tmp_path)
    (tmp_path / "controlled-0.jsonl").touch()
    require_round_logs(lineup, tmp_path)
