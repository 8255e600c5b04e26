"""The controller against the best fixed arm, on recorded rounds of a real model.

The recording holds what lookup and a trained draft would have got right after every token of SmolLM2's answers. Only
the times are simulated. No constant of the controller was chosen on this recording.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.recorded_rounds import RECORDING, RecordedRounds
from tests.bench.speculation.regret import (
    best_fixed_arm,
    measure_regret,
    new_controller,
    new_noise,
)
from tests.bench.speculation.simulator import play, speed
from tests.example_count import seed_count

RECORDED: Final = RecordedRounds.read(RECORDING)
SEEDS: Final = range(seed_count(3))
OF_BEST: Final = 0.97
"""Least speed from the first request on, over that of the best fixed arm, which is chosen afterwards."""
OF_OFF: Final = 0.98
"""Least speed in any 200 rounds of a fresh pod, over that of no speculation."""
AFTER_SHIFT: Final = 0.97
"""Least speed from 100 rounds after a shift on, over that of the best fixed arm of what came."""
ROUNDS_TO_ADAPT: Final = 100

machines = pytest.mark.parametrize("costs", [cpu_milliseconds, gpu_milliseconds])


def requests_for(concurrency: int) -> int:
    return 60 if concurrency == 1 else 40 * concurrency


@machines
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("traffic", ["json", "docstrings", "sql", "prose", "mixed"])
def test_a_fresh_pod_is_as_fast_as_the_best_fixed_arm(traffic: str, concurrency: int, costs: CostTable) -> None:
    requests = RECORDED.traffics(requests_for(concurrency))[traffic]
    for seed in SEEDS:
        regret = measure_regret(requests, concurrency, costs, seed)
        assert regret.of_best >= OF_BEST, (seed, regret.best)
        assert regret.worst_window >= OF_OFF, seed


@machines
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(("before", "after"), [("json", "prose"), ("prose", "json"), ("json", "docstrings")])
def test_after_a_shift_the_best_speed_is_back_within_100_rounds(
    before: str, after: str, concurrency: int, costs: CostTable
) -> None:
    requests = RECORDED.traffics(requests_for(concurrency) // 2)
    best = best_fixed_arm(requests[after], concurrency, costs)
    for seed in SEEDS:
        controller, noise = new_controller(seed), new_noise(seed)
        assert list(play(controller, requests[before], concurrency, costs, noise))
        rounds = list(play(controller, requests[after], concurrency, costs, noise))
        assert speed(rounds[ROUNDS_TO_ADAPT:]) >= AFTER_SHIFT * best.speed, (seed, best)
