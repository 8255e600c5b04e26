"""How fast the service was in each minute of the demo, beside the engines' estimate of no speculation.

A service cannot run with and without speculation at the same time. So tokens per second are what clients received, and
the comparison is ``status.estimatedSpeedup``, which the engines estimate from the costs of their own verify rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.traffic.report import Summary

SECONDS_PER_ROW = 60.0


@dataclass(frozen=True)
class SpeedRow:
    """One row of the table.

    Attributes:
        minutes: end of the row's time, since the traffic began.
        version: the active draft at the end. None: none yet.
        tokens_per_second: answer tokens that clients received, all clients together.
        estimate: speed against no speculation, for example "~1.8x". Empty: no engine has an estimate yet.
    """

    minutes: float
    version: int | None
    tokens_per_second: float
    estimate: str


class SpeedOverTime:
    """Collects a row for each minute of traffic."""

    def __init__(self) -> None:
        self.rows: list[SpeedRow] = []
        self._seconds, self._tokens = 0.0, 0

    def add(self, resource: dict[str, Any], traffic: Summary) -> None:
        """Close a row if a minute has passed since the last one ended."""
        seconds = traffic.duration_seconds - self._seconds
        if seconds < SECONDS_PER_ROW:
            return
        status = resource.get("status") or {}
        self.rows.append(
            SpeedRow(
                minutes=traffic.duration_seconds / 60,
                version=(status.get("active") or {}).get("version"),
                tokens_per_second=(traffic.answer_tokens - self._tokens) / seconds,
                estimate=status.get("estimatedSpeedup") or "",
            )
        )
        self._seconds, self._tokens = traffic.duration_seconds, traffic.answer_tokens

    def table(self) -> str:
        """The rows as text, one line each."""
        lines = [
            "Speed over time: tokens per second of all clients, and the engines' estimate against no speculation",
            "  minute  draft   tok/s  estimate",
        ]
        lines += [
            f"{row.minutes:>8.1f}{'-' if row.version is None else row.version:>7}"
            f"{row.tokens_per_second:>8.1f}{row.estimate or '-':>10}"
            for row in self.rows
        ]
        return "\n".join(lines)
