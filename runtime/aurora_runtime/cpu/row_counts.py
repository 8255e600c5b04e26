"""How many rows oneDNN is given where a pass has one to three: as many as this CPU computes fastest.

oneDNN has another kernel for each small number of rows, and fewer rows may take longer. On one machine with AVX-512 the
products of a pass took 28 ms for two rows and 22 ms for four. On others the smallest number is the fastest. So the
numbers are measured once in a process. A row's result does not depend on the rows beside it, so answers do not depend
on the choice, as long as there are at least two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

FEWEST: Final = 2
"""oneDNN sums a single row in another order than a row among several."""
MOST: Final = 4
"""Rows from which on nothing is added."""
LEAST_GAIN: Final = 0.05
"""Share of the time that added rows must save. Less is within the noise of the measurement."""
REPETITIONS: Final = 7


class RowCounts:
    """The number of rows to compute for each small number of rows. Until :meth:`measure`, as few as possible."""

    def __init__(self) -> None:
        self._counts = tuple(max(FEWEST, rows) for rows in range(MOST + 1))
        self._is_measured = False

    def __call__(self, rows: int) -> int:
        return rows if rows > MOST else self._counts[rows]

    def measure(self, compute: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> None:
        """Choose by the shortest of some times of ``compute(rows)``. Only the first call does anything."""
        if self._is_measured:
            return
        self._is_measured = True
        seconds = dict.fromkeys(range(FEWEST, MOST + 1), float("inf"))
        for repetition in range(REPETITIONS + 1):
            for rows in seconds:
                began = clock()
                compute(rows)
                if repetition:  # the first one warms up
                    seconds[rows] = min(seconds[rows], clock() - began)
        fastest = {rows: _fastest(rows, seconds) for rows in seconds}
        self._counts = tuple(fastest[max(FEWEST, rows)] for rows in range(MOST + 1))
        log.info("aurora cpu: products of one, two and three rows have %d, %d and %d rows", *self._counts[1:MOST])


def _fastest(least: int, seconds: dict[int, float]) -> int:
    """The fastest number of rows from ``least`` on, if it saves enough."""
    best = min(range(least, MOST + 1), key=seconds.__getitem__)
    return best if seconds[best] <= (1 - LEAST_GAIN) * seconds[least] else least
