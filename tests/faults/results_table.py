"""What every fault cost, measured: the table that docs/results/faults.md quotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One fault at one moment of a draft's life, and what clients saw meanwhile."""

    fault: str
    state: str
    seconds: float
    """From the fault, or from the end of one that lasts, until every part was whole again."""
    requests: int
    broken: int
    """Answers that broke and were asked for again."""
    failed: int
    end: str = ""
    """The state that was reached."""


def table(entries: Sequence[Entry]) -> str:
    """Markdown: one row per fault and state."""
    lines = ["| fault | at | whole again, s | requests | asked again | failed | end |", "|---|---|---|---|---|---|---|"]
    for e in entries:
        cells = (e.fault, e.state, f"{e.seconds:.1f}", e.requests, e.broken, e.failed, e.end)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
