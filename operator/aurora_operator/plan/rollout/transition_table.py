"""Writes the rollout's transition table into ARCHITECTURE.md.

Run ``python -m aurora_operator.plan.rollout.transition_table`` after a change of the table.

Invariant: what stands between the markers is the table that the operator runs; a unit test fails when they differ.
"""

from __future__ import annotations

from pathlib import Path

from aurora_operator.plan.rollout.transition import BEFORE_PROMOTION, EVERY_PHASE, TRANSITIONS, Transition

BEGIN, END = "<!-- rollout-transitions:begin -->", "<!-- rollout-transitions:end -->"
DOCUMENT = Path(__file__).resolve().parents[4] / "ARCHITECTURE.md"
_GROUPS = {EVERY_PHASE: "any", BEFORE_PROMOTION: "Canary, Rolling, Paused"}


def table() -> str:
    """The transitions as a markdown table."""
    head = ("Phase", "Judgement", "Next phase", "Channel", "Pods", "Event")
    lines = [head, ("---",) * len(head), *(_cells(row) for row in TRANSITIONS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Transition) -> tuple[str, ...]:
    phases = _GROUPS.get(row.phases, ", ".join(row.phases))
    return phases, row.judgement.__name__, " or ".join(row.leads_to), row.channel, row.pods, row.event


def with_table(document: str) -> str:
    """``document`` with the table between its markers. Raises :class:`ValueError` where a marker is missing."""
    before, _, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the document needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
