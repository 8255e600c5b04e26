"""The tables that pages have between their markers. The text around them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from aurora_cli.doctor import remedies
from aurora_operator.plan.rollout.machine import EVERY_PHASE, TRANSITIONS, Transition
from tests.generated import exported_metrics
from tests.generated.exported_metrics import Exported
from tests.generated.generated_file import ROOT, with_part

CONDITIONS, METRICS, ROLLOUT = "docs/reference/conditions.md", "docs/reference/metrics.md", "ARCHITECTURE.md"
_MARKERS: Final = re.compile(r"<!-- generated: (\w+) -->")


def conditions_page() -> str:
    """The rows that ``kubectl aurora doctor`` prints, for each type of condition. Empty columns are left out."""
    text = (ROOT / CONDITIONS).read_text()
    for name in _MARKERS.findall(text):
        rows = remedies()[name]
        columns = {
            "Reason": [f"`{reason}`" for reason in rows],
            "Status": [row.status for row in rows.values()],
            "Meaning": [row.meaning for row in rows.values()],
            "What to do": [row.do for row in rows.values()],
        }
        shown = {column: cells for column, cells in columns.items() if any(cells)}
        text = with_part(text, name, _table(tuple(shown), list(zip(*shown.values(), strict=True))))
    return text


def metrics_page() -> str:
    """The metrics of the operator and of the agent."""
    text = (ROOT / METRICS).read_text()
    text = with_part(text, "operator", _metrics(exported_metrics.operator()))
    return with_part(text, "agent", _metrics(exported_metrics.agent()))


def _metrics(metrics: Iterable[Exported]) -> str:
    rows = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help_text.removesuffix('.')} |")
    return "\n".join(rows) + "\n"


def rollout_page() -> str:
    """The rollout's state machine: its transitions, and the meaning of each judgement."""
    head = ("Phase", "Judgement", "Next phase", "Channel", "Pods", "Event")
    judgements = dict.fromkeys(row.judgement for row in TRANSITIONS)
    meanings = [(judgement.__name__, " ".join((judgement.__doc__ or "").split())) for judgement in judgements]
    transitions = _table(head, [_cells(row) for row in TRANSITIONS])
    tables = f"{transitions}\n\n{_table(('Judgement', 'Meaning'), meanings)}\n"
    return with_part((ROOT / ROLLOUT).read_text(), "rollout-transitions", tables)


def _cells(row: Transition) -> tuple[str, ...]:
    phases = "any" if row.phases == EVERY_PHASE else ", ".join(row.phases)
    leads_to, events = " or ".join(row.leads_to) or "the same", " or ".join(row.events)
    return phases, row.judgement.__name__, leads_to, row.channel, row.pods, events


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))
