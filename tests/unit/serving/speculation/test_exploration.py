from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.speculation.arms import OFF, Arm
from aurora_runtime.serving.speculation.exploration import (
    ExplorationBudget,
    ExplorationSettings,
    Prospect,
    is_off_due,
    most_promising,
    with_draft_step_by_step,
)

SETTINGS = ExplorationSettings()
ARMS = (OFF, Arm(1, drafts=True), Arm(3, drafts=True), Arm(7, drafts=True))


@given(st.lists(st.floats(0, 30), max_size=300), st.integers(0, 200), st.integers(1, 100))
def test_any_stretch_of_rounds_loses_at_most_its_share_a_bucket_and_one_round(
    losses: list[float], start: int, length: int
) -> None:
    budget, off, spent = ExplorationBudget(SETTINGS), 20.0, list[float]()
    for loss in losses:
        pays = loss <= budget.credit_milliseconds
        spent.append(loss if pays else 0.0)
        if pays:
            budget.spend(loss)
        budget.earn(off, off)
    stretch = spent[start : start + length]
    assert sum(stretch) <= SETTINGS.share * off * length + SETTINGS.burst_rounds * off + 1e-6


def test_nothing_is_explored_before_the_first_round_was_timed() -> None:
    assert ExplorationBudget(SETTINGS).credit_milliseconds == 0


def test_a_gain_pays_for_later_losses() -> None:
    budget = ExplorationBudget(SETTINGS)
    budget.earn(20, 20)
    budget.spend(15)
    budget.spend(-5)
    assert budget.credit_milliseconds == pytest.approx(SETTINGS.burst_rounds * 20 - 10)


def prospect(arm: int, optimistic_speed: float, loss: float = 0.0) -> Prospect:
    return Prospect(arm, tokens=1.0, optimistic_speed=optimistic_speed, milliseconds=20.0 + loss)


def test_of_equal_gains_the_cheaper_one_is_explored() -> None:
    found = most_promising([prospect(1, 0.1, loss=8), prospect(2, 0.1, loss=2)], 1 / 20, 20.0, 0.03)
    assert found is not None
    assert found.arm == 2


def test_what_cannot_be_paid_or_cannot_win_is_not_explored() -> None:
    assert most_promising([prospect(1, 0.1, loss=8)], 1 / 20, 5.0, 0.03) is None
    assert most_promising([prospect(1, 0.051, loss=1)], 1 / 20, 5.0, 0.03) is None


@pytest.mark.parametrize(("known", "explored"), [(0, {1}), (1, {1, 2}), (3, {1, 2, 3})])
def test_the_draft_is_explored_from_few_steps_to_many(known: int, explored: set[int]) -> None:
    trials = [9.0 if position < known else 0.0 for position in range(7)]
    prospects = [prospect(i, 0.1 * (1 + i)) for i in range(len(ARMS))]
    result = with_draft_step_by_step(ARMS, prospects, trials)
    assert {p.arm for p in result[1:] if p.optimistic_speed > 0} == explored
    assert max(p.optimistic_speed for p in result) == prospects[-1].optimistic_speed


def test_off_is_timed_more_often_while_it_is_hardly_known_and_more_rarely_the_more_it_would_lose() -> None:
    assert is_off_due(samples=0, age_rounds=0, speedup=2.0)
    assert is_off_due(samples=2, age_rounds=30, speedup=2.0)
    assert not is_off_due(samples=20, age_rounds=30, speedup=2.0)
    assert is_off_due(samples=20, age_rounds=100, speedup=2.0)
    assert not is_off_due(samples=20, age_rounds=100, speedup=4.0)
