"""A pod's traces keep to their budget, however busy it is, and a conversation stays in the sample."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.capture.request_filter import SAVED_MINUTES, TraceAllowance

BUDGET = 6000
"""Tokens a minute: 100 a second."""


def traced_by_minute(allowance: TraceAllowance, tokens_per_second: int, minutes: int, request: int = 500) -> list[int]:
    """Tokens that are traced in each minute of even traffic of requests with about ``request`` tokens."""
    chance, traced = random.Random(1), list[int]()  # noqa: S311 - no secret
    for _ in range(minutes):
        sum_of_minute = 0
        for _ in range(60):
            offered = 0
            while offered < tokens_per_second:
                length = chance.randint(request // 2, request * 3 // 2)
                offered += length
                if chance.random() < allowance.share:
                    allowance.spend(length)
                    sum_of_minute += length
            allowance.pass_time(1)
        traced.append(sum_of_minute)
    return traced


@pytest.mark.parametrize("load", [3, 30, 300])
def test_busy_traffic_is_traced_at_the_pace_of_the_budget(load: int) -> None:
    traced = traced_by_minute(TraceAllowance(BUDGET), load * BUDGET // 60, 60)
    later = traced[20:]
    assert 0.9 < sum(later) / len(later) / BUDGET < 1.1
    assert sum(traced[:20]) < (20 + SAVED_MINUTES) * BUDGET * 1.1


def test_quiet_traffic_is_traced_almost_whole() -> None:
    offered = 10 * 60  # each request is longer than a second's tokens, so one comes a second
    traced = traced_by_minute(TraceAllowance(BUDGET), 10, 60, request=10)
    assert sum(traced) / 60 > 0.9 * offered


def test_one_request_moves_the_share_by_a_little() -> None:
    """So most later turns of a conversation are traced where the first one was."""
    allowance = TraceAllowance(BUDGET)
    traced_by_minute(allowance, 100 * BUDGET // 60, 30)
    before = allowance.share
    allowance.spend(500)
    assert 0.9 < allowance.share / before < 1


def test_nothing_is_traced_without_a_budget() -> None:
    allowance = TraceAllowance(0)
    allowance.pass_time(3600)
    assert allowance.share == 0


def test_a_first_order_begins_with_what_an_idle_engine_saves() -> None:
    allowance = TraceAllowance(0)
    allowance.order(BUDGET)
    assert allowance.share == 1
    allowance.spend(int(SAVED_MINUTES) * BUDGET)
    assert allowance.share == 0
    allowance.order(BUDGET)
    assert allowance.share == 0, "the same order again gives nothing"


def test_a_smaller_budget_keeps_no_more_than_it_would_have_saved() -> None:
    allowance = TraceAllowance(10 * BUDGET)
    allowance.order(BUDGET)
    allowance.spend(int(SAVED_MINUTES) * BUDGET)
    assert allowance.share == 0


@given(st.integers(1, 10**6), st.lists(st.tuples(st.floats(0, 600), st.integers(0, 10**7)), max_size=30))
def test_the_share_is_a_share_and_no_trace_begins_beyond_the_budget(
    budget: int, steps: list[tuple[float, int]]
) -> None:
    allowance = TraceAllowance(budget)
    begun, last, seconds = 0.0, 0, 0.0
    for passed, tokens in steps:
        allowance.pass_time(passed)
        seconds += passed
        assert 0 <= allowance.share <= 1
        if allowance.share > 0:
            assert begun <= budget * (SAVED_MINUTES + seconds / 60)
            allowance.spend(tokens)
            begun, last = begun + tokens, tokens
    assert begun - last <= budget * (SAVED_MINUTES + seconds / 60)
