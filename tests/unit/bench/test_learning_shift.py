"""Forgetting and recovery are read off the looks as one would by eye."""

from __future__ import annotations

import pytest

from tests.bench.learning.shift import PARTS, Point, forgotten, recovery, summary


def walked(last: tuple[float, ...], *, before: float = 2.0) -> list[Point]:
    """Looks of a first domain that reached ``before``, was left alone, and then went through ``last``."""
    lengths = [*([1.0] * PARTS), before, *([before] * PARTS), last[0], *last]
    marks = [part * 100 for part in range(PARTS + 1)] * 3
    phases = [phase for phase in ("a", "b", "a") for _ in range(PARTS + 1)]
    return [Point(*each) for each in zip(phases, marks, ((length, 1.0) for length in lengths), strict=True)]


def test_what_is_forgotten_is_the_fall_while_the_other_domain_was_served() -> None:
    assert forgotten(walked((1.2, 1.4, 1.9, 2.0, 2.0))) == pytest.approx(0.8)


def test_recovery_is_the_way_back_between_two_looks() -> None:
    assert recovery(walked((1.2, 1.5, 1.8, 2.0, 2.0))) == pytest.approx(250)
    assert recovery(walked((1.95, 1.5, 1.8, 2.0, 2.0))) == 0
    assert recovery(walked((1.2, 1.3, 1.4, 1.5, 1.5))) is None


def test_a_row_says_how_many_seeds_got_there() -> None:
    there, never = walked((1.2, 1.5, 1.8, 2.0, 2.0)), walked((1.2, 1.3, 1.4, 1.5, 1.5))
    rows = summary({"both": [there, never], "one": [there], "none": [never]}).splitlines()[2:]
    assert [row.split("|")[3].strip() for row in rows] == ["250 (1 of 2 seeds)", "250", "never"]
