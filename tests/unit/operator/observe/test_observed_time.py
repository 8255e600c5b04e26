"""Deadlines count only time that the operator observed, and no jump of a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aurora_operator.reconciler import ObservedTime

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def after(wall: float, monotonic: float, *, decided: bool = True) -> bool:
    """Whether an observation ``wall`` and ``monotonic`` seconds after another one has a gap before it."""
    observed_time = ObservedTime()
    observed_time.record(NOW, 100.0, decided=decided)
    return observed_time.has_gap(NOW + timedelta(seconds=wall), 100.0 + monotonic)


@pytest.mark.parametrize("seconds", [0, 2, 15, 40])
def test_observations_at_the_pace_of_the_loop_have_no_gap(seconds: float) -> None:
    assert not after(seconds, seconds)


@pytest.mark.parametrize(
    ("wall", "monotonic"), [(3600, 2), (-3600, 2), (700, 700), (2, 700)], ids=["ahead", "back", "stopped", "both"]
)
def test_a_clock_that_was_set_or_a_process_that_stood_still_makes_a_gap(wall: float, monotonic: float) -> None:
    assert after(wall, monotonic)


def test_a_restart_or_an_outage_of_the_store_makes_a_gap() -> None:
    assert ObservedTime().has_gap(NOW, 0.0)
    assert after(2, 2, decided=False)
