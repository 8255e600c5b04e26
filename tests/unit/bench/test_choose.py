"""Constants are chosen on traffic that does not score them, and replaced only where the choice is certain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from aurora_runtime.serving.speculation.controller import ControllerSettings
from aurora_runtime.serving.speculation.estimates.cost_cells import LookSettings
from tests.bench.speculation import choose
from tests.bench.speculation.choose import (
    OF_PODS,
    Candidate,
    Comparison,
    best_of,
    candidates,
    compare,
    simulate,
    value_of,
)
from tests.bench.speculation.cost_tables import cpu_milliseconds
from tests.bench.speculation.generated_rounds import DOCSTRINGS, JSON, generate
from tests.bench.speculation.recorded_rounds import RecordedRequest, RecordedRounds
from tests.bench.speculation.scenarios import (
    CHOOSING_SEEDS,
    GENERATED,
    RECORDED_CHOOSING_SEEDS,
    RECORDED_SCORING_SEEDS,
    SCORING_SEEDS,
    GeneratedTraffic,
    RecordedTraffic,
    Scenario,
    recorded_scenarios,
)

SLOWER, FASTER, OTHER = Candidate("odds_weight", 1.0), Candidate("odds_weight", 4.0), Candidate("after_rounds", 25)
CERTAIN, MORE_CERTAIN = Comparison(1.01, 1.002, 1.02, 0.9), Comparison(1.02, 1.001, 1.04, 0.9)


def test_the_traffic_that_chooses_is_none_of_the_traffic_that_scores() -> None:
    for scenario in {one.traffic: one for one in GENERATED if one.concurrency == 1}.values():
        scoring = [scenario.requests(seed) for seed in SCORING_SEEDS]
        assert all(scenario.requests(seed) not in scoring for seed in CHOOSING_SEEDS)
        assert scenario.requests(SCORING_SEEDS[0]) == scoring[0]


def test_every_recorded_request_belongs_to_one_seed() -> None:
    recorded = tuple(generate(DOCSTRINGS, 50))
    traffic = RecordedTraffic("docstrings", recorded)
    by_seed = {seed: traffic.requests(40, seed) for seed in (*RECORDED_CHOOSING_SEEDS, *RECORDED_SCORING_SEEDS)}
    owners = [[seed for seed, own in by_seed.items() if request in own] for request in recorded]
    assert all(len(seeds) == 1 for seeds in owners)
    assert {len(own) for own in by_seed.values()} == {40}
    for seed, own in by_seed.items():
        early = traffic.requests(40, seed, early=True)
        assert all(request in own for request in early)
        assert early != own


def test_recorded_scenarios_are_the_domains_of_the_files(tmp_path: Path) -> None:
    def named(domain: str, count: int) -> list[RecordedRequest]:
        return [dataclasses.replace(one, domain=domain) for one in generate(JSON, count)]

    first, second = tmp_path / "weak.json", tmp_path / "strong.json"
    RecordedRounds("", (*named("a", 24), *named("b", 24))).write(first)
    RecordedRounds("", tuple(named("a", 24))).write(second)
    scenarios = recorded_scenarios([first, second])
    assert {one.traffic.name for one in scenarios} == {"weak a", "weak b", "strong a"}
    assert len(scenarios) == 3 * 8
    assert sum(one.starts_busy for one in scenarios) == 12
    RecordedRounds("", tuple(named("a", 23))).write(second)
    with pytest.raises(ValueError, match="strong a: 23"):
        recorded_scenarios([first, second])


def test_each_candidate_differs_from_the_settings_of_pods_in_its_constant_only() -> None:
    def flat(settings: ControllerSettings) -> dict[str, object]:
        return {**dataclasses.asdict(settings), **dataclasses.asdict(settings.looks), "looks": None}

    for candidate in candidates():
        changed = candidate.applied_to(OF_PODS)
        different = {name for name, value in flat(OF_PODS).items() if flat(changed)[name] != value}
        assert different == {candidate.constant}
        assert value_of(changed, candidate.constant) == candidate.value


def test_speeds_are_compared_by_seed_and_scenario() -> None:
    """The second seed's traffic is ten times as fast for both, which must not widen the interval."""
    found = compare({1: [1.1, 2.2], 2: [11.0, 22.0]}, {1: [1.0, 2.0], 2: [10.0, 20.0]})
    assert (found.ratio, found.low, found.high, found.worst) == pytest.approx((1.1, 1.1, 1.1, 1.1))
    assert compare({1: [1.0, 0.5]}, {1: [1.0, 1.0]}).worst == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("compared", "chosen"),
    [
        ({}, OF_PODS),
        ({FASTER: Comparison(1.02, 0.99, 1.05, 0.9)}, OF_PODS),
        ({SLOWER: CERTAIN, FASTER: MORE_CERTAIN}, dataclasses.replace(OF_PODS, odds_weight=4.0)),
        ({FASTER: MORE_CERTAIN, SLOWER: CERTAIN}, dataclasses.replace(OF_PODS, odds_weight=4.0)),
        (
            {FASTER: CERTAIN, OTHER: MORE_CERTAIN},
            dataclasses.replace(OF_PODS, odds_weight=4.0, looks=LookSettings(after_rounds=25)),
        ),
    ],
)
def test_of_each_constant_only_a_value_that_is_better_for_certain_is_chosen(
    compared: dict[Candidate, Comparison], chosen: ControllerSettings
) -> None:
    assert best_of(compared) == chosen


@pytest.mark.parametrize(("low", "high", "verdict"), [(1.001, 1.1, "better"), (0.9, 0.999, "worse"), (0.99, 1.01, "")])
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Comparison(1.0, low, high, 0.9).verdict() == verdict


def test_pods_that_started_beside_a_busy_neighbour_play_other_rounds_when_they_look_again_sooner() -> None:
    scenario = [Scenario(GeneratedTraffic("docstrings"), 4, cpu_milliseconds, starts_busy=True)]
    sooner = dataclasses.replace(OF_PODS, looks=LookSettings(after_rounds=2))
    assert simulate(OF_PODS, [2, 3, 4], scenario) != simulate(sooner, [2, 3, 4], scenario)


def test_the_controller_of_a_simulation_has_the_given_settings() -> None:
    """A catch-up that is never written off keeps the draft away from traffic on which lookup alternates with it."""
    scenario = [Scenario(GeneratedTraffic("sql"), 4, cpu_milliseconds)]
    dear = dataclasses.replace(OF_PODS, catch_up_rounds=0.01)
    fast, slow = (simulate(settings, [5], scenario)[5][0] for settings in (OF_PODS, dear))
    assert simulate(OF_PODS, [5], scenario)[5] == [fast]
    assert fast > slow


@pytest.mark.parametrize("constant", ["odds_weight", "lookup_lead", "off_times"])
def test_a_varied_constant_changes_the_rounds(constant: str) -> None:
    scenario = [Scenario(GeneratedTraffic("docstrings"), 4, cpu_milliseconds)]
    speeds = [simulate(one.applied_to(OF_PODS), [5], scenario)[5] for one in candidates([constant])]
    assert len({one for (one,) in speeds} | set(simulate(OF_PODS, [5], scenario)[5])) > 1


def test_the_command_scores_what_it_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight of the odds that is far better is chosen, and scored beside that of pods."""
    RecordedRounds("", tuple(generate(DOCSTRINGS, 24))).write(file := tmp_path / "rounds.json")
    monkeypatch.setattr("sys.argv", ["choose", "--recorded", str(file), "--constants", "odds_weight"])
    monkeypatch.setattr(choose, "best_fixed_arm", lambda *_: SimpleNamespace(speed=1.0))
    monkeypatch.setattr(Scenario, "speed", lambda _self, settings, _seed: 1.0 + (settings.odds_weight == 4.0))
    choose.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row for row in rows if "| better |" in row] == [
        "| odds_weight | 4 | 2.0000 [2.0000, 2.0000] | better | 2.0000 [2.0000, 2.0000] | 2.000 |"
    ]
    assert rows[-1].startswith("| chosen | odds_weight 4 |")
    assert rows[-1].endswith("| 2.0000 [2.0000, 2.0000] |")
