from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.speculation.estimates.survival import (
    PRIOR_WEIGHT,
    SurvivalRates,
    expected_accepted,
    wilson_bound,
)

POSITIONS = 5
proposals = st.lists(
    st.integers(0, POSITIONS).flatmap(lambda proposed: st.tuples(st.integers(0, proposed), st.just(proposed))),
    max_size=60,
)


def learned(history: list[tuple[int, int]], prior: float = 0.1) -> SurvivalRates:
    rates = SurvivalRates(range(POSITIONS), prior)
    for accepted, proposed in history:
        rates.fade(0.02)
        rates.add(accepted, proposed)
    return rates


@given(proposals, st.floats(0.01, 0.99))
def test_rates_lie_between_their_bounds_and_expected_tokens_rise_by_at_most_one_a_step(
    history: list[tuple[int, int]], prior: float
) -> None:
    rates = learned(history, prior)
    low, mean, high = rates.rates(-2.0), rates.rates(), rates.rates(2.0)
    assert all(0 <= a <= b + 1e-9 <= c + 2e-9 <= 1 + 2e-9 for a, b, c in zip(low, mean, high, strict=True))
    curve = expected_accepted(mean)
    assert curve[0] == 0
    assert all(0 <= b - a <= 1 for a, b in itertools.pairwise(curve))


@given(proposals, st.integers(0, POSITIONS), st.integers(0, POSITIONS))
def test_a_better_proposal_never_lowers_the_first_rate(history: list[tuple[int, int]], some: int, other: int) -> None:
    worse, better = sorted((some, other))
    after_worse = learned([*history, (worse, POSITIONS)]).rates()
    after_better = learned([*history, (better, POSITIONS)]).rates()
    assert after_worse[0] <= after_better[0] + 1e-9


def test_a_short_proposal_teaches_nothing_about_later_positions() -> None:
    rates = learned([(2, 2)] * 20)
    assert [rates.trials(d) > 0 for d in range(POSITIONS)] == [True, True, False, False, False]


def test_a_rejected_first_token_teaches_nothing_about_the_second() -> None:
    assert learned([(0, 4)] * 20).trials(1) == 0


def test_rates_follow_the_recent_proposals() -> None:
    rates = learned([(5, 5)] * 200 + [(0, 5)] * 200)
    assert rates.rates()[0] < 0.05


def test_fading_for_ever_overflows_nothing() -> None:
    rates = learned([(3, 5)])
    for _ in range(1000):
        rates.fade(5.0)
        rates.add(3, 5)
    assert rates.rates()[0] == pytest.approx((1 + PRIOR_WEIGHT * 0.1) / (1 + PRIOR_WEIGHT), abs=0.01)


@given(proposals, st.lists(st.floats(0.01, 3.0), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_forgetting_changes_no_rate_and_narrows_no_bound(
    history: list[tuple[int, int]], forgotten: list[float], prior: float
) -> None:
    rates = learned(history, prior)
    before, high = rates.rates(), rates.rates(1.5)
    for by in forgotten:
        rates.forget(by)
    assert rates.rates() == pytest.approx(before)
    assert all(now >= then - 1e-9 for now, then in zip(rates.rates(1.5), high, strict=True))


def test_what_was_forgotten_counts_for_little_beside_new_proposals() -> None:
    rates = learned([(5, 5)] * 200)
    rates.forget(10.0)
    for _ in range(20):
        rates.add(0, 5)
    assert rates.rates()[0] < 0.1


def test_the_bound_of_an_unknown_rate_is_nearly_one() -> None:
    assert learned([]).rates(1.5)[0] > 0.85


@given(st.floats(0, 1), st.floats(0.1, 1e4))
def test_more_observations_narrow_the_bound(rate: float, weight: float) -> None:
    assert wilson_bound(rate, 2 * weight, 1.5) <= wilson_bound(rate, weight, 1.5) + 1e-9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 100))
def test_odds_above_one_raise_the_expected_tokens(rates: list[float], odds: float) -> None:
    curve, plain = expected_accepted(rates, odds), expected_accepted(rates)
    better = odds >= 1
    assert all((a >= b - 1e-9) if better else (a <= b + 1e-9) for a, b in zip(curve, plain, strict=True))
