"""Acceptance length over traffic as a curve between evaluations, and figures that are read off the curve."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Acceptance ``lengths`` after ``tokens`` answer tokens of traffic, ascending; linear between them."""

    tokens: tuple[float, ...]
    lengths: tuple[float, ...]

    def tokens_to_reach(self, level: float) -> float | None:
        """Tokens at which the curve first reaches ``level``; None when it never does."""
        if self.lengths[0] >= level:
            return self.tokens[0]
        points = zip(self.tokens, self.lengths, strict=True)
        for (before, low), (after, high) in itertools.pairwise(points):
            if high >= level:
                return before + (level - low) / (high - low) * (after - before)
        return None


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of curves that were evaluated after the same numbers of tokens."""
    lengths = zip(*(curve.lengths for curve in curves), strict=True)
    return Curve(curves[0].tokens, tuple(statistics.fmean(values) for values in lengths))


def format_thousands(tokens: float | None) -> str:
    return "not reached" if tokens is None else f"{tokens / 1000:.1f}k"


def mean_and_deviation(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and the standard deviation where there are several values."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"
