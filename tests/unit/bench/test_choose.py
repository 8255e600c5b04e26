"""Constants are chosen on traffic that does not score them, and replaced only where the choice is certain."""

from __future__ import annotations

import dataclasses

import pytest

from aurora_runtime.serving.speculation.controller import ControllerSettings
from aurora_runtime.serving.speculation.estimates.cost_cells import LookSettings
from tests.bench.speculation.choose import (
    CHOOSING_SEEDS,
    OF_PODS,
    SCENARIOS,
    SCORING_SEEDS,
    Comparison,
    Scenario,
    best_of,
    candidates,
    compare,
    simulate,
)
from tests.bench.speculation.cost_tables import cpu_milliseconds

OTHER = dataclasses.replace(OF_PODS, catch_up_rounds=16.0)
BETTER = dataclasses.replace(OF_PODS, catch_up_rounds=4.0)


def test_the_traffic_that_chooses_is_none_of_the_traffic_that_scores() -> None:
    for scenario in {one.traffic: one for one in SCENARIOS if one.concurrency == 1}.values():
        scoring = [scenario.requests(seed) for seed in SCORING_SEEDS]
        assert all(scenario.requests(seed) not in scoring for seed in CHOOSING_SEEDS)
        assert scenario.requests(SCORING_SEEDS[0]) == scoring[0]


def test_each_candidate_differs_from_the_settings_of_pods_in_one_constant() -> None:
    first, *others = [{**dataclasses.asdict(s), **dataclasses.asdict(s.looks), "looks": None} for s in candidates()]
    assert candidates()[0] == OF_PODS
    assert all(sum(one[name] != first[name] for name in first) == 1 for one in others)


def test_speeds_are_compared_by_seed_and_scenario() -> None:
    """The second seed's traffic is ten times as fast for both, which must not widen the interval."""
    found = compare({1: [1.1, 2.2], 2: [11.0, 22.0]}, {1: [1.0, 2.0], 2: [10.0, 20.0]})
    assert (found.ratio, found.low, found.high, found.worst) == pytest.approx((1.1, 1.1, 1.1, 1.1))
    assert compare({1: [1.0, 0.5]}, {1: [1.0, 1.0]}).worst == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("compared", "chosen"),
    [
        ({OTHER: Comparison(1.02, 0.99, 1.05, 0.9)}, OF_PODS),
        ({OTHER: Comparison(1.01, 1.002, 1.02, 0.9), BETTER: Comparison(1.02, 1.001, 1.04, 0.9)}, BETTER),
        ({}, OF_PODS),
    ],
)
def test_only_a_setting_that_is_better_for_certain_is_chosen(
    compared: dict[ControllerSettings, Comparison], chosen: ControllerSettings
) -> None:
    assert best_of(compared) == chosen


def test_pods_that_started_beside_a_busy_neighbour_play_other_rounds_when_they_look_again_sooner() -> None:
    scenario = [Scenario("docstrings", 4, cpu_milliseconds, starts_busy=True)]
    sooner = dataclasses.replace(OF_PODS, looks=LookSettings(after_rounds=2))
    assert simulate(OF_PODS, [2, 3, 4], scenario) != simulate(sooner, [2, 3, 4], scenario)


def test_the_controller_of_a_simulation_has_the_given_settings() -> None:
    """A catch-up that is never written off keeps the draft away from traffic on which lookup alternates with it."""
    scenario = [Scenario("sql", 4, cpu_milliseconds)]
    dear = dataclasses.replace(OF_PODS, catch_up_rounds=0.01)
    fast, slow = (simulate(settings, [5], scenario)[5][0] for settings in (OF_PODS, dear))
    assert simulate(OF_PODS, [5], scenario)[5] == [fast]
    assert fast > slow
