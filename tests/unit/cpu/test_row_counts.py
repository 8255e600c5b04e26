from __future__ import annotations

import itertools

import pytest

from aurora_runtime.cpu.packed_weights import REPETITIONS, RowCounts


def counts(seconds: dict[int, float]) -> list[int]:
    """The rows that are computed for one to six rows, where a product with ``rows`` rows takes ``seconds[rows]``."""
    now = [0.0]

    def compute(rows: int) -> None:
        now[0] += seconds[rows]

    chosen = RowCounts()
    chosen.measure(compute, lambda: now[0])
    return [chosen(rows) for rows in range(1, 7)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param({2: 20.0, 3: 21.0, 4: 22.0}, [2, 2, 3, 4, 5, 6], id="few rows are fast"),
        pytest.param({2: 28.0, 3: 24.0, 4: 22.0}, [4, 4, 4, 4, 5, 6], id="few rows are slow"),
        pytest.param({2: 28.0, 3: 22.0, 4: 22.5}, [3, 3, 3, 4, 5, 6], id="three rows are the fastest"),
        pytest.param({2: 20.0, 3: 20.0, 4: 19.5}, [2, 2, 3, 4, 5, 6], id="within the noise"),
    ],
)
def test_rows_are_added_where_that_is_faster(seconds: dict[int, float], expected: list[int]) -> None:
    assert counts(seconds) == expected


@pytest.mark.parametrize("seconds", list(itertools.product((1.0, 0.97, 0.9), repeat=3)))
def test_the_number_of_rows_that_is_computed_needs_no_further_rows(seconds: tuple[float, float, float]) -> None:
    chosen = counts(dict(zip((2, 3, 4), seconds, strict=True)))
    assert all(chosen[rows - 1] == rows for rows in chosen)


def test_before_the_measurement_only_a_single_row_is_not_alone() -> None:
    assert [RowCounts()(rows) for rows in range(1, 6)] == [2, 2, 3, 4, 5]


def test_it_is_measured_once() -> None:
    asked = list[int]()
    chosen = RowCounts()
    for _ in range(2):
        chosen.measure(asked.append)
    assert len(asked) == 3 * (REPETITIONS + 1)
