"""The table of alerts in the page about monitoring, from the chart's alerts."""

from __future__ import annotations

import re
from typing import Any, Final

import yaml

from tests.generated.generated_file import ROOT, with_part

PAGE: Final = "docs/how-to/monitoring.md"
ALERTS: Final = "charts/aurora-operator/monitoring/alerts.yaml"


def render_page() -> str:
    """The page with its table. The text around it is written by hand."""
    groups = yaml.safe_load((ROOT / ALERTS).read_text())["groups"]
    rows = [_row(rule) for group in groups for rule in group["rules"]]
    table = "\n".join(["| Alert | Severity | After | Fires when | Runbook |", "|---|---|---|---|---|", *rows, ""])
    return with_part((ROOT / PAGE).read_text(), "alerts", table)


def _row(rule: dict[str, Any]) -> str:
    notes = rule["annotations"]
    cells = (f"`{rule['alert']}`", rule["labels"]["severity"], rule.get("for", "at once"), _plain(notes["summary"]))
    return f"| {' | '.join(cells)} | {_plain(notes['runbook'])} |"


def _plain(text: str) -> str:
    """``text`` with names in capitals in place of Prometheus' templates."""
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda match: match[1].upper(), text)
    return re.sub(r"{{ \$value[^}]*}}", "TIME", text).strip()
