"""Forgetting and recovery are read off the looks as one would by eye."""

from __future__ import annotations

import pytest

from tests.bench.learning.shift import PARTS, Point, curve_of, recovery, summary

BACK = (1.2, 1.5, 1.8, 2.0, 2.0, 2.0, 2.0)
LOST = (1.2, 1.3, 1.4, 1.5, 1.5, 1.5, 1.5)


def walked(last: tuple[float, ...], *, before: float = 2.0) -> list[Point]:
    """Looks of a first domain that reached ``before``, was left alone, and then went through ``last``."""
    lengths = [*([1.0] * PARTS), before, *([before] * PARTS), last[0], *last]
    marks = [part * 1000 for part in range(PARTS + 1)] * 3
    phases = [phase for phase in ("a", "b", "a") for _ in range(PARTS + 1)]
    return [Point(*each) for each in zip(phases, marks, ((length, 1.0) for length in lengths), strict=True)]


def cells(*seeds: list[Point]) -> dict[str, str]:
    """The row of a recipe, by its head."""
    head, _, row = summary(["a", "b"], {"fifo": [*seeds]}).splitlines()
    names, values = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row))
    return dict(zip(names, values, strict=True))


def test_what_is_forgotten_is_the_fall_while_the_other_domain_was_served() -> None:
    assert cells(walked(BACK))["a: forgetting"] == "-0.80"
    assert cells(walked(BACK), walked((1.6, *BACK[1:])))["a: forgetting"] == "-0.60 ± 0.28"


@pytest.mark.parametrize(
    ("last", "tokens"), [(BACK, "2.5k"), ((1.95, *BACK[1:]), "0.0k"), (LOST, "not reached")], ids=str
)
def test_recovery_is_the_way_back_to_what_was_before(last: tuple[float, ...], tokens: str) -> None:
    assert recovery([curve_of(walked(last), 2, 0)], 2.0) == tokens
    assert cells(walked(last))["a again: recovery"] == tokens


def test_recovery_lies_between_two_looks() -> None:
    assert curve_of(walked(BACK), 2, 0).reaches(0.95 * 2.0) == pytest.approx(2500)


def test_recovery_is_of_the_mean_over_seeds() -> None:
    """A seed that never gets there holds the others back, and is not left out."""
    assert cells(walked(BACK), walked(LOST))["a again: recovery"] == "not reached"
    assert cells(walked(BACK), walked((1.2, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0)))["a again: recovery"] == "2.0k"
