"""The axes of the report's charts hold their figures, whatever these are."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from aurora_cli.report.charts.scale import nice_range, number_ticks, time_ticks
from tests.unit.cli.report_example import START


@given(st.floats(-1e12, 1e12), st.floats(0, 1e12), st.integers(2, 10))
@example(0.0, 5e-324, 2)
@example(1e12, 0.0, 10)
def test_ticks_hold_the_figures(low: float, size: float, count: int) -> None:
    start, end, step = nice_range(low, low + size, count)
    ticks = number_ticks(start, end, step)
    assert 1 < len(ticks) <= 2 * count + 4
    assert start <= low + step * 1e-6
    assert end >= low + size - step * 1e-6


@given(st.integers(0, 10**9), st.integers(2, 10))
def test_ticks_of_time_lie_within_the_time(seconds: int, count: int) -> None:
    ticks = time_ticks(START, START + timedelta(seconds=seconds), count)
    assert all(0 <= tick.value <= seconds for tick in ticks)
    assert len(ticks) <= count + 2
