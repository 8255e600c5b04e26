"""Acceptance length over traffic as a curve between looks, and what is read off it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Acceptance ``lengths`` after ``tokens`` answer tokens of traffic, ascending; straight between them."""

    tokens: tuple[float, ...]
    lengths: tuple[float, ...]

    def reaches(self, level: float) -> float | None:
        """Tokens at which the curve first is at ``level``; None if it never is."""
        if self.lengths[0] >= level:
            return self.tokens[0]
        points = zip(self.tokens, self.lengths, strict=True)
        for (before, low), (after, high) in itertools.pairwise(points):
            if high >= level:
                return before + (level - low) / (high - low) * (after - before)
        return None


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean of curves that were looked at after the same tokens."""
    lengths = zip(*(curve.lengths for curve in curves), strict=True)
    return Curve(curves[0].tokens, tuple(statistics.fmean(values) for values in lengths))


def thousands(tokens: float | None) -> str:
    return "not reached" if tokens is None else f"{tokens / 1000:.1f}k"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and standard deviation where there are several."""
    more = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{more}"
