"""The controller against the best fixed arm and against off, on simulated engines (tests/bench/speculation).

Rounds are generated with the statistics of published measurements, or recorded from a real model: what lookup and a
trained draft would have got right after every token of SmolLM2's answers. Costs look like a CPU's and like a GPU's. The
controller sees noisy times, the results use true ones.
"""

from __future__ import annotations

from statistics import fmean
from typing import Final

import pytest

from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import (
    DOCSTRINGS,
    JSON,
    PROSE,
    SQL,
    UNTRAINED,
    TrafficKind,
    generate,
    in_turn,
)
from tests.bench.speculation.recorded_rounds import RECORDING, RecordedRequest, RecordedRounds
from tests.bench.speculation.regret import best_fixed_arm, measure_regret, new_busy_noise, new_controller, new_noise
from tests.bench.speculation.simulator import against_off, load_in_turn, play, speed
from tests.example_count import seed_count

OF_BEST: Final = 0.95
"""Least speed from the first request of a fresh pod on, over the best fixed arm's, which is chosen afterwards."""
OF_OFF: Final = 0.98
"""Least speed of a fresh pod over that of off."""
AFTER_SHIFT: Final = 0.95
"""Least speed from some rounds after a change on, over that of the best fixed arm of what came: mean over pods."""
ROUNDS_TO_ADAPT: Final = 200
PODS: Final = 3

RECORDED: Final = RecordedRounds.read(RECORDING)
machines = pytest.mark.parametrize("costs", [cpu_milliseconds, gpu_milliseconds])
UNTRAINED_JSON = JSON.with_draft(UNTRAINED)
UNTRAINED_DOCSTRINGS = DOCSTRINGS.with_draft(UNTRAINED)


def requests_for(concurrency: int) -> int:
    return 60 if concurrency == 1 else 40 * concurrency


@machines
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("kind", [JSON, UNTRAINED_JSON, DOCSTRINGS, UNTRAINED_DOCSTRINGS], ids=lambda k: str(k.known))
def test_stationary_traffic_is_as_fast_as_with_the_best_fixed_arm(
    kind: TrafficKind, concurrency: int, costs: CostTable
) -> None:
    of_best = [
        measure_regret(generate(kind, requests_for(concurrency), seed), concurrency, costs, seed).of_best
        for seed in range(PODS)
    ]
    assert fmean(of_best) >= OF_BEST, of_best


@machines
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("traffic", ["json", "docstrings", "sql", "prose", "mixed"])
def test_on_recorded_rounds_a_fresh_pod_is_as_fast_as_the_best_fixed_arm(
    traffic: str, concurrency: int, costs: CostTable
) -> None:
    requests = RECORDED.traffics(requests_for(concurrency))[traffic]
    found = [measure_regret(requests, concurrency, costs, seed) for seed in range(seed_count(PODS))]
    assert fmean(regret.of_best for regret in found) >= OF_BEST
    assert min(regret.worst_window for regret in found) >= OF_OFF


@machines
@pytest.mark.parametrize("concurrency", [1, 4, 16])
@pytest.mark.parametrize("kind", [PROSE, PROSE.with_draft(UNTRAINED)], ids=["prose", "untrained draft"])
def test_where_nothing_can_be_guessed_a_pod_is_as_fast_as_off(
    kind: TrafficKind, concurrency: int, costs: CostTable
) -> None:
    for seed in range(seed_count(2)):
        regret = measure_regret(generate(kind, 20 * concurrency, seed), concurrency, costs, seed)
        assert regret.speedup >= OF_OFF, seed


def test_on_mixed_traffic_a_pod_is_faster_than_the_best_fixed_arm() -> None:
    regret = measure_regret(in_turn((JSON, DOCSTRINGS, SQL, PROSE), 80), 1, cpu_milliseconds)
    assert regret.of_best >= 1.05, regret.best


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    ("before", "after", "swaps"),
    [
        pytest.param(JSON, PROSE, False, id="to traffic that nothing can guess"),
        pytest.param(PROSE, JSON, False, id="from traffic that nothing can guess"),
        pytest.param(DOCSTRINGS, UNTRAINED_DOCSTRINGS, True, id="swap to an untrained draft"),
        pytest.param(DOCSTRINGS, DOCSTRINGS.with_draft(0.1), False, id="a draft that gets worse unnoticed"),
    ],
)
def test_soon_after_a_change_the_best_speed_is_back(
    before: TrafficKind, after: TrafficKind, swaps: bool, concurrency: int
) -> None:
    of_best, count = list[float](), requests_for(concurrency)
    for seed in range(PODS):
        controller, noise = new_controller(), new_noise(seed)
        assert list(play(controller, generate(before, count // 2, seed), concurrency, cpu_milliseconds, noise))
        if swaps:
            controller.draft_serves("2")
        traffic = generate(after, count, seed + PODS)
        rounds = list(play(controller, traffic, concurrency, cpu_milliseconds, noise))
        best = best_fixed_arm(traffic, concurrency, cpu_milliseconds)
        of_best.append(speed(rounds[ROUNDS_TO_ADAPT:]) / best.speed)
    assert fmean(of_best) >= AFTER_SHIFT, of_best


@pytest.mark.parametrize("concurrency", [1, 16, 64])
def test_a_better_draft_is_used_after_a_swap_under_steady_load(concurrency: int) -> None:
    """No running request can draft at the swap, and lookup finds nothing."""
    kind, until_swap, rounds_to_find_it = PROSE.with_draft(0.75), 300, 600
    for seed in range(seed_count(2)):
        traffic = generate(kind, 40 * concurrency, seed)
        best = best_fixed_arm(traffic, concurrency, gpu_milliseconds)
        played = play(
            new_controller(), traffic, concurrency, gpu_milliseconds, new_noise(seed), untrained_rounds=until_swap
        )
        assert speed(list(played)[until_swap + rounds_to_find_it :]) >= 0.85 * best.speed, seed


@machines
@pytest.mark.parametrize("kind", [JSON, DOCSTRINGS], ids=["json", "docstrings"])
def test_a_pod_that_started_beside_a_busy_neighbour_is_soon_fast(kind: TrafficKind, costs: CostTable) -> None:
    """Half of the first times are two to four times too long. An arm that seems slow is not chosen again."""
    of_best = []
    for seed in range(PODS):
        controller = new_controller()
        assert list(play(controller, generate(kind, 40, seed=5), 4, costs, new_busy_noise(seed)))
        traffic = generate(kind, 240, seed)
        rounds = list(play(controller, traffic, 4, costs, new_noise(seed)))
        of_best.append(speed(rounds[len(rounds) // 2 :]) / best_fixed_arm(traffic, 4, costs).speed)
    assert fmean(of_best) >= OF_BEST, of_best


@machines
def test_speculation_follows_a_load_that_changes(costs: CostTable) -> None:
    load = load_in_turn((1, 4, 32, 8), 24)
    traffic: list[RecordedRequest] = generate(DOCSTRINGS, 400)
    rounds = list(play(new_controller(), traffic, load, costs, new_noise()))
    assert against_off(rounds) >= OF_OFF
    assert speed(rounds[len(rounds) // 2 :]) >= 0.93 * best_fixed_arm(traffic, load, costs).speed


@pytest.mark.parametrize("kind", [JSON, DOCSTRINGS, SQL], ids=["JSON", "docstrings", "SQL"])
def test_a_pod_that_starts_under_load_is_as_fast_as_off_on_a_cpu(kind: TrafficKind) -> None:
    """By the prior nothing pays there. On a GPU nearly everything does."""
    pods = [
        against_off(list(play(new_controller(), generate(kind, 16 * 64, seed), 64, cpu_milliseconds, new_noise(seed))))
        for seed in range(PODS)
    ]
    assert fmean(pods) >= OF_OFF - 0.01, pods
    assert measure_regret(generate(kind, 12 * 64), 64, gpu_milliseconds).of_best >= 0.8
