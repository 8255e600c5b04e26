"""The time of a catch-up is learned although a single round's noise hides it, and outliers hardly move it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.speculation.estimates.catch_up_cost import BOUNDS, CatchUpCost

ROUND_MILLISECONDS = 30.0
ROUGH = 2.0


def learn(cost: CatchUpCost, true: float, rounds: int, seed: int, outliers: float = 0.0) -> None:
    rng = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(rounds):
        measured = true + rng.gauss(0, 0.08 * ROUND_MILLISECONDS)
        if rng.random() < outliers:
            measured += ROUND_MILLISECONDS * rng.uniform(1, 3)
        cost.learn(ROUGH, measured, ROUND_MILLISECONDS, 0.0)


@pytest.mark.parametrize("true", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_catch_up_shorter_than_the_noise_of_a_round_is_learned(true: float, seed: int) -> None:
    cost = CatchUpCost()
    learn(cost, true, 200, seed)
    assert cost.multiple * ROUGH == pytest.approx(true, abs=0.9)


def test_rounds_that_were_held_up_by_something_else_hardly_count() -> None:
    cost = CatchUpCost()
    learn(cost, 4.0, 300, seed=1, outliers=0.02)
    assert cost.multiple * ROUGH == pytest.approx(4.0, abs=1.2)


@given(st.lists(st.tuples(st.floats(0.01, 50), st.floats(-100, 1000)), max_size=50))
def test_the_time_stays_positive_and_bounded_whatever_was_measured(rounds: list[tuple[float, float]]) -> None:
    cost = CatchUpCost()
    for rough, measured in rounds:
        cost.learn(rough, measured, ROUND_MILLISECONDS, 0.01)
    assert BOUNDS[0] <= cost.multiple <= BOUNDS[1]
