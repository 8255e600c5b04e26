"""Time that passed while nobody looked, or that a clock made up, counts against no version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aurora_operator.observe.observed_time import ObservedTime

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def after(wall: float, steady: float, *, decided: bool = True) -> bool:
    """Whether the look ``wall`` and ``steady`` seconds after one that decided, or did not, counts anew."""
    attention = ObservedTime()
    attention.looked(NOW, 100.0, decided=decided)
    return attention.lapsed(NOW + timedelta(seconds=wall), 100.0 + steady)


@pytest.mark.parametrize("seconds", [0, 2, 15, 40])
def test_looks_as_the_loop_makes_them_let_deadlines_count(seconds: float) -> None:
    assert not after(seconds, seconds)


@pytest.mark.parametrize(
    ("wall", "steady"), [(3600, 2), (-3600, 2), (700, 700), (2, 700)], ids=["ahead", "back", "stopped", "both"]
)
def test_a_clock_that_was_set_or_a_process_that_stood_still_starts_them_anew(wall: float, steady: float) -> None:
    assert after(wall, steady)


def test_so_do_a_restart_and_an_outage_of_the_store() -> None:
    assert ObservedTime().lapsed(NOW, 0.0)
    assert after(2, 2, decided=False)
