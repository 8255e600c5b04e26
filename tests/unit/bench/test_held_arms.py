"""Held servers run beside the plain server of the same rounds, four at most. Ratios and the catch-up are paired."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from aurora_protocol.evidence_records import AnswerEquality
from aurora_protocol.evidence_records import Arm as GateArm
from aurora_runtime.engine.arms import arms_within
from aurora_runtime.engine.speculation_flags import SPECULATION_VARIABLE, Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.speculation.worker.policy import FixedArms
from tests.bench.served import arms
from tests.bench.served.arms import MeasuredGroup, report
from tests.bench.served.held_arms import MOST_SERVERS, Group, HeldArms, group_lineup, groups_of
from tests.bench.served.held_arms_report import catch_up_table, plain_table, round_ratio
from tests.bench.served.paired_rounds import BatchCounts, Measured, Sample

TURNS = HeldArms.parse("lookup-2, draft-2")


def held_settings(server: Eagle3 | Ngram | None) -> SpeculationSettings:
    assert isinstance(server, Eagle3)
    assert server.controller is not None
    return SpeculationSettings.from_json(server.controller.environment()[SPECULATION_VARIABLE].encode())


@pytest.mark.parametrize("text", ["", "draft", "lookup-x", "draft-2,", "off,draft-1,draft-2"])
def test_what_is_no_arm_or_has_too_many_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        HeldArms.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--turns", "off,draft-1,draft-2"], "argument --turns: off,draft-1,draft-2: beside off"),
        (["--draft-steps", "0"], "error: "),
        (["--out", "no/such/folder/samples.json"], "the directory no/such/folder does not exist"),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_measured(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["arms", *arguments])
    with pytest.raises(SystemExit) as stopped:
        arms.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "catch_ups"),
    [
        ("draft-2", 0),
        ("lookup-2,off", 0),
        ("lookup-2,draft-2", 1),
        ("draft-2,lookup-2,lookup-2", 1),
        ("draft-2,off,draft-2,off,off", 2),
    ],
)
def test_the_draft_catches_up_where_it_follows_a_round_without_it(text: str, catch_ups: int) -> None:
    assert HeldArms.parse(text).catch_ups == catch_ups


@pytest.mark.parametrize(
    ("draft_steps", "lookup_steps", "turns"),
    [(2, 3, "draft-2"), (2, 3, "lookup-2,draft-3"), (2, 4, "lookup-2,draft-2")],
)
def test_turns_without_a_catch_up_and_arms_that_the_engine_lacks_are_refused(
    draft_steps: int, lookup_steps: int, turns: str
) -> None:
    with pytest.raises(ValueError, match=r"catches up|offers"):
        groups_of(draft_steps, lookup_steps, HeldArms.parse(turns))


def test_held_servers_run_beside_the_plain_servers_of_the_same_rounds(tmp_path: Path) -> None:
    groups = groups_of(2, 3, TURNS)
    lineups = []
    for number, group in enumerate(groups):
        (folder := tmp_path / str(number)).mkdir()
        lineups.append(group_lineup(group, Path("draft"), 2, folder))
    assert [[arm.name for arm in lineup.arms] for lineup in lineups] == [
        ["off", "held to off", "EAGLE-3, 2 steps", "held to draft-2"],
        ["off", "NGRAM, 4 tokens", "held to lookup-3"],
        ["off", "held to lookup-2, draft-2 in turn", "held to lookup-2", "held to draft-2"],
    ]
    for lineup in lineups:
        assert [arm.server for arm in lineup.arms] == list(lineup.servers)
        assert len(lineup.servers) <= MOST_SERVERS
    plain = lineups[0].servers["plain-draft-2"]
    assert isinstance(plain, Eagle3)
    assert (plain.spec.steps, plain.spec.tokens_per_round, plain.controller) == (2, 3, None)
    assert lineups[1].servers["plain-lookup-3"] == Ngram(4)
    assert lineups[1].experienced == ("plain-lookup-3", "held-lookup-3")


def test_a_held_server_takes_its_arms_in_turn_and_is_built_like_a_pod(tmp_path: Path) -> None:
    lineup = group_lineup(Group((TURNS,), beside_plain=False), Path("draft"), 2, tmp_path)
    server = lineup.servers[TURNS.server]
    settings = held_settings(server)
    policy = FixedArms(settings.fixed_arms)
    assert [policy.choose([]).arm.name for _ in range(4)] == ["lookup-2", "draft-2"] * 2
    assert settings.arms == arms_within(2, 11)
    assert isinstance(server, Eagle3)
    assert server.controller is not None
    built = json.loads(server.controller.adaptive_config.read_text())["1"]["candidate_steps"]
    assert {arm.steps for arm in settings.arms} == set(built)
    assert Path(settings.state_folder).is_dir()


def measured(
    milliseconds: Mapping[str, float], tokens_per_second: Mapping[str, float], *, slow_rounds: bool = True
) -> Measured:
    """Four measurement rounds at concurrency 1, of which every other one may be twice as slow."""
    samples = [
        Sample(arm, 1, number, BatchCounts(2, 100, 100 / speed * pace, 50, 0), (ms * pace * 0.9, ms * pace * 1.1))
        for number in range(4)
        for pace in (1 + number % 2 if slow_rounds else 1,)
        for arm, ms in milliseconds.items()
        for speed in (tokens_per_second.get(arm, 50.0),)
    ]
    return Measured(tuple(samples), {}, None, 1.0)


def test_the_time_of_a_round_is_paired_by_measurement_round() -> None:
    ratio = round_ratio(measured({"a": 33.0, "b": 20.0, "c": 40.0}, {}), "a", ["b", "c"], 1)
    assert ratio is not None
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((1.1, 1.1, 1.1))
    twice = round_ratio(measured({"a": 33.0, "b": 20.0, "c": 35.0}, {}), "a", ["b", "b", "c"], 1)
    assert twice is not None
    assert twice.estimate == pytest.approx(33 / 25)
    assert round_ratio(measured({"a": 33.0}, {}), "a", ["b"], 1) is None
    assert round_ratio(measured({"a": 33.0, "b": 20.0}, {}), "a", ["b"], 4) is None


def test_a_catch_up_is_what_rounds_in_turn_take_longer() -> None:
    """A draft round of 32 ms and a lookup round of 24 ms have a mean of 28 ms; 31 ms in turn are 6 ms a catch-up."""
    milliseconds = {TURNS.arm: 31.0, "held to lookup-2": 24.0, "held to draft-2": 32.0}
    samples = measured(milliseconds, {}, slow_rounds=False)
    row = catch_up_table([(samples, TURNS)], [1]).splitlines()[2]
    assert row == "| 1 | held to lookup-2, draft-2 in turn | 31.0 | 28.0 | 1.107 [1.107, 1.107] | 6.0 [6.0, 6.0] |"


def test_a_held_server_has_a_row_against_its_plain_server() -> None:
    held = HeldArms.parse("draft-2")
    samples = measured({held.arm: 33.0, held.plain: 30.0}, {held.arm: 49.0, held.plain: 50.0})
    row = plain_table([(samples, held)], [1]).splitlines()[2]
    assert "| held to draft-2 | EAGLE-3, 2 steps |" in row
    assert "| 0.980 [0.980, 0.980] |" in row
    assert row.endswith("| 1.100 [1.100, 1.100] |")


def test_the_report_has_all_comparisons_and_counts_the_differences_of_every_group(tmp_path: Path) -> None:
    groups = []
    for number, group in enumerate(groups_of(2, 3, TURNS)):
        (folder := tmp_path / str(number)).mkdir()
        names = [arm.name for arm in group_lineup(group, Path("draft"), 2, folder).arms]
        different = AnswerEquality(arm=GateArm.CANDIDATE, prompts=5, identical=4, near_ties=0, different=1)
        samples = measured(dict.fromkeys(names, 30.0), {})
        equality = {name: different for name in names if name != "off"}
        groups.append(MeasuredGroup(group, dataclasses.replace(samples, equality=equality)))
    plain, catch_up, equality_rows = report(groups, [1]).split("\n\n")
    assert [line.split(" | ")[1:3] for line in plain.splitlines()[2:]] == [
        ["held to off", "off"],
        ["held to draft-2", "EAGLE-3, 2 steps"],
        ["held to lookup-3", "NGRAM, 4 tokens"],
    ]
    assert len(catch_up.splitlines()) == 2 + 1
    assert len(equality_rows.splitlines()) == 2 + 3 + 2 + 3
    assert [one.failures for one in groups] == [3, 2, 3]
