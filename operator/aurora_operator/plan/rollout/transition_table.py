"""Writes the rollout's transition table into ARCHITECTURE.md.

Run ``python -m aurora_operator.plan.rollout.transition_table`` after a change of the table.

Invariant: the table between the markers is the table that the operator runs. A unit test fails when they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aurora_operator.plan.rollout.transition import BEFORE_PROMOTION, EVERY_PHASE, TRANSITIONS, Transition

BEGIN, END = "<!-- rollout-transitions:begin -->", "<!-- rollout-transitions:end -->"
DOCUMENT = Path(__file__).resolve().parents[4] / "ARCHITECTURE.md"
_GROUPS = {EVERY_PHASE: "any", BEFORE_PROMOTION: "Canary, Rolling, Paused"}


def table() -> str:
    """The transitions as a markdown table, and a second one with the meaning of each judgement."""
    head = ("Phase", "Judgement", "Next phase", "Channel", "Pods", "Event")
    judgements = dict.fromkeys(row.judgement for row in TRANSITIONS)
    meanings = [(judgement.__name__, " ".join((judgement.__doc__ or "").split())) for judgement in judgements]
    transitions = _markdown(head, [_cells(row) for row in TRANSITIONS])
    return f"{transitions}\n\n{_markdown(('Judgement', 'Meaning'), meanings)}"


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


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
