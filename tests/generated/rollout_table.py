"""The tables of the rollout's state machine in ARCHITECTURE.md: its transitions, and the meaning of each judgement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aurora_operator.plan.rollout.machine import EVERY_PHASE, TRANSITIONS, Transition
from tests.generated.generated_file import ROOT, with_part

PAGE: Final = "ARCHITECTURE.md"


def render_page() -> str:
    """The page with its tables. The text around them is written by hand."""
    head = ("Phase", "Judgement", "Next phase", "Channel", "Pods", "Event")
    judgements = dict.fromkeys(row.judgement for row in TRANSITIONS)
    meanings = [(judgement.__name__, " ".join((judgement.__doc__ or "").split())) for judgement in judgements]
    transitions = _markdown(head, [_cells(row) for row in TRANSITIONS])
    tables = f"{transitions}\n\n{_markdown(('Judgement', 'Meaning'), meanings)}\n"
    return with_part((ROOT / PAGE).read_text(), "rollout-transitions", tables)


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))


def _cells(row: Transition) -> tuple[str, ...]:
    phases = "any" if row.phases == EVERY_PHASE else ", ".join(row.phases)
    leads_to, events = " or ".join(row.leads_to) or "the same", " or ".join(row.events)
    return phases, row.judgement.__name__, leads_to, row.channel, row.pods, events
