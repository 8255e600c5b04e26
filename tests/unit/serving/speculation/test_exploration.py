from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.engine.arms import OFF, Arm
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


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 99)), max_size=300), st.integers(0, 200), st.integers(1, 100))
def test_any_stretch_of_rounds_loses_at_most_its_share_and_two_buckets_or_one_long_catch_up(
    losses: list[tuple[float, float]], start: int, length: int
) -> None:
    """Each round may explore an arm that is expected to lose this time, and to catch up for that long."""
    budget, off, spent = ExplorationBudget(SETTINGS), 20.0, list[float]()
    for own, catch_up in losses:
        credit, lost = budget.credit_milliseconds, 0.0
        one = Prospect(1, 1.0, 1.0, 20.0 + own + catch_up, budget.loan_milliseconds(catch_up))
        if credit > 0 and most_promising([one], 1 / 20, credit, SETTINGS.min_gain):
            lost = own + catch_up
            budget.spend(lost)
        spent.append(lost)
        budget.earn(off, off)
        assert budget.credit_milliseconds >= -SETTINGS.loan_buckets * SETTINGS.burst_rounds * off - 1e-6
    stretch = spent[start : start + length]
    at_once = max(2 * SETTINGS.burst_rounds * off, *stretch, 0.0)
    assert sum(stretch) <= SETTINGS.share * off * length + at_once + 1e-6


def test_nothing_is_explored_before_the_first_round_was_timed() -> None:
    assert ExplorationBudget(SETTINGS).credit_milliseconds == 0


def test_a_gain_pays_for_later_losses() -> None:
    budget = ExplorationBudget(SETTINGS)
    budget.earn(20, 20)
    budget.spend(15)
    budget.spend(-5)
    assert budget.credit_milliseconds == pytest.approx(SETTINGS.burst_rounds * 20 - 10)


def prospect(arm: int, optimistic_speed: float, loss: float = 0.0, loan: float = 0.0) -> Prospect:
    return Prospect(arm, 1.0, optimistic_speed, milliseconds=20.0 + loss, loan_milliseconds=loan)


def test_of_equal_gains_the_cheaper_one_is_explored() -> None:
    found = most_promising([prospect(1, 0.1, loss=8), prospect(2, 0.1, loss=2)], 1 / 20, 20.0, 0.03)
    assert found is not None
    assert found.arm == 2


def test_what_cannot_be_paid_or_cannot_win_is_not_explored() -> None:
    assert most_promising([prospect(1, 0.1, loss=8)], 1 / 20, 5.0, 0.03) is None
    assert most_promising([prospect(1, 0.051, loss=1)], 1 / 20, 5.0, 0.03) is None


def test_a_catch_up_that_takes_longer_than_the_bucket_pays_for_is_paid_from_later_rounds() -> None:
    budget = ExplorationBudget(SETTINGS)
    budget.earn(20, 20)
    bucket = SETTINGS.burst_rounds * 20
    assert budget.loan_milliseconds(30) == 30
    assert budget.loan_milliseconds(1000) == SETTINGS.loan_buckets * bucket
    late = prospect(1, 0.1, loss=35, loan=budget.loan_milliseconds(30))
    assert most_promising([late], 1 / 20, budget.credit_milliseconds, 0.03) == late
    budget.spend(35)
    assert budget.credit_milliseconds == pytest.approx(bucket - 35)
    assert most_promising([prospect(2, 0.1, loss=1)], 1 / 20, budget.credit_milliseconds, 0.03) is None
    assert budget.loan_milliseconds(1000) == bucket, "only a full bucket lends more than it holds"
    too_dear = prospect(1, 0.1, loss=45, loan=budget.loan_milliseconds(40))
    assert most_promising([too_dear], 1 / 20, bucket, 0.03) is None


def test_a_loan_is_paid_back_in_rounds_whatever_their_batch_size() -> None:
    budget = ExplorationBudget(SETTINGS)
    budget.earn(70, 70)
    budget.spend(70 + SETTINGS.burst_rounds * 70)
    rounds = 0
    while budget.credit_milliseconds <= 0:
        budget.earn(20, 20)
        rounds += 1
    assert rounds == pytest.approx(1 / SETTINGS.share, abs=2)


def test_no_loan_lasts_longer_than_a_full_bucket_lends() -> None:
    budget = ExplorationBudget(SETTINGS)
    budget.earn(20, 20)
    budget.spend(10_000)
    budget.earn(0, 20)
    assert budget.credit_milliseconds == -SETTINGS.loan_buckets * SETTINGS.burst_rounds * 20


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
