"""Forgetting and recovery are computed from the evaluations of the phases."""

from __future__ import annotations

import pytest

from tests.bench.learning.shift import EVALUATIONS_PER_PHASE, PhasePoint, curve_of, recovery, summary

RECOVERING = (1.2, 1.5, 1.8, 2.0, 2.0, 2.0, 2.0)
NOT_RECOVERING = (1.2, 1.3, 1.4, 1.5, 1.5, 1.5, 1.5)


def points_through(last: tuple[float, ...], *, before: float = 2.0) -> list[PhasePoint]:
    """Points of a first domain: it rises to ``before``, rests, and then goes through ``last``."""
    lengths = [*([1.0] * EVALUATIONS_PER_PHASE), before, *([before] * EVALUATIONS_PER_PHASE), last[0], *last]
    marks = [part * 1000 for part in range(EVALUATIONS_PER_PHASE + 1)] * 3
    phases = [phase for phase in ("a", "b", "a") for _ in range(EVALUATIONS_PER_PHASE + 1)]
    return [PhasePoint(*each) for each in zip(phases, marks, ((length, 1.0) for length in lengths), strict=True)]


def summary_cells(*seeds: list[PhasePoint]) -> dict[str, str]:
    """The summary's row of a recipe, by the head of its columns."""
    head, _, row = summary(["a", "b"], {"fifo": [*seeds]}).splitlines()
    names, values = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row))
    return dict(zip(names, values, strict=True))


def test_forgetting_is_the_fall_during_the_other_domains_phase() -> None:
    assert summary_cells(points_through(RECOVERING))["a: forgetting"] == "-0.80"
    assert (
        summary_cells(points_through(RECOVERING), points_through((1.6, *RECOVERING[1:])))["a: forgetting"]
        == "-0.60 ± 0.28"
    )


@pytest.mark.parametrize(
    ("last", "tokens"),
    [(RECOVERING, "2.5k"), ((1.95, *RECOVERING[1:]), "0.0k"), (NOT_RECOVERING, "not reached")],
    ids=str,
)
def test_recovery_is_the_traffic_until_the_level_before_the_shift(last: tuple[float, ...], tokens: str) -> None:
    assert recovery([curve_of(points_through(last), 2, 0)], 2.0) == tokens
    assert summary_cells(points_through(last))["a again: recovery"] == tokens


def test_recovery_is_interpolated_between_two_evaluations() -> None:
    assert curve_of(points_through(RECOVERING), 2, 0).tokens_to_reach(0.95 * 2.0) == pytest.approx(2500)


def test_recovery_is_computed_from_the_mean_over_seeds() -> None:
    """A seed that never recovers counts too, and delays the mean."""
    assert (
        summary_cells(points_through(RECOVERING), points_through(NOT_RECOVERING))["a again: recovery"] == "not reached"
    )
    assert (
        summary_cells(points_through(RECOVERING), points_through((1.2, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0)))[
            "a again: recovery"
        ]
        == "2.0k"
    )
