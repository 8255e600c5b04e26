"""The tables of the metrics reference, from the metrics themselves."""

from __future__ import annotations

from collections.abc import Iterable

from tests.generated import exported_metrics
from tests.generated.exported_metrics import Exported
from tests.generated.generated_file import ROOT, with_part

PAGE = "docs/reference/metrics.md"


def render_page() -> str:
    """The page with its tables. The text around them is written by hand."""
    text = (ROOT / PAGE).read_text()
    text = with_part(text, "operator", _table(exported_metrics.operator()))
    return with_part(text, "agent", _table(exported_metrics.agent()))


def _table(metrics: Iterable[Exported]) -> str:
    rows = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help_text.removesuffix('.')} |")
    return "\n".join(rows) + "\n"
