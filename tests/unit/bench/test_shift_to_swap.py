"""The stages of a swap are told apart without counting a second twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.shift_to_swap import Stage, seconds_of_stages

SHIFT = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("capture", "training", "waiting", "measuring", "rolling")


@given(st.lists(st.integers(-60, 3600), min_size=len(NAMES), max_size=len(NAMES)))
def test_the_stages_add_up_to_the_time_until_the_last_of_them_ended(ends: list[int]) -> None:
    stages = [Stage(name, SHIFT + timedelta(seconds=end)) for name, end in zip(NAMES, ends, strict=True)]
    seconds = seconds_of_stages(SHIFT, stages)
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) == pytest.approx(max(0, *ends))
