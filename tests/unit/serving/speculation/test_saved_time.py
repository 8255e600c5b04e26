"""The average of the time that speculation saves: its value, its memory and its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.agent_api import MAX_SPEEDUP
from aurora_runtime.serving.speculation.controller_report import RoundCounters
from aurora_runtime.serving.speculation.saved_time import MEMORY_SECONDS, SavedTimeAverage

DAY = 86400


def after(*observations: tuple[float, float]) -> tuple[float, float]:
    """Share and observed seconds after observations of (seconds, total saved seconds)."""
    average = SavedTimeAverage()
    found = [average.observe(*one) for one in observations]
    assert found[0] is None
    assert found[-1] is not None
    return found[-1].share, found[-1].observed_seconds


def test_idle_time_counts() -> None:
    assert after((100, 7), (110, 12), (200, 12)) == pytest.approx((5 / 100, 100), rel=0.01)


def test_a_day_of_another_load_replaces_the_average() -> None:
    busy = [(float(t), t * 0.5) for t in range(0, 5 * DAY, 600)]
    total, end = busy[-1][1], busy[-1][0]
    idle = [(end + t, total) for t in range(600, 3 * DAY, 600)]
    assert after(*busy)[0] == pytest.approx(0.5)
    share, seconds = after(*busy, *idle)
    assert 0.01 < share < 0.05, "less than three times the memory later"
    assert seconds == pytest.approx(end + 3 * DAY, rel=0.01)
    assert MEMORY_SECONDS == DAY


def test_a_clock_that_stands_still_says_nothing() -> None:
    average = SavedTimeAverage()
    assert [average.observe(5, 1), average.observe(5, 2)] == [None, None]


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e5, 1e9)), min_size=2, max_size=20))
def test_any_sequence_gives_a_share_within_its_limits(steps: list[tuple[float, float]]) -> None:
    average, now, total = SavedTimeAverage(), 0.0, 0.0
    for seconds, saved in steps:
        now, total = now + seconds, total + saved
        found = average.observe(now, total)
        assert found is None or -1 <= found.share <= MAX_SPEEDUP


def test_the_controllers_counters_add_up_what_rounds_without_speculation_would_have_taken() -> None:
    counters = RoundCounters()
    assert counters.report(()).saved_seconds == 0, "an engine without rounds saves nothing"
    for milliseconds, off_milliseconds in ((10, 25), (10, 5)):
        counters.compare_with_off(milliseconds, off_milliseconds)
    assert counters.report(()).saved_seconds == pytest.approx(0.010)
