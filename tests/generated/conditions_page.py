"""The tables of ``docs/reference/conditions.md``: the rows that ``kubectl aurora doctor`` prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from aurora_cli.doctor import Remedy, remedies
from tests.generated.generated_file import ROOT, with_part

PAGE: Final = "docs/reference/conditions.md"
MARKERS: Final = re.compile(r"<!-- generated: (\w+) -->")


def render_page() -> str:
    """The page with the table of each type between its markers."""
    text = (ROOT / PAGE).read_text()
    for name in MARKERS.findall(text):
        text = with_part(text, name, _table(remedies()[name]))
    return text


def _table(rows: Mapping[str, Remedy]) -> str:
    """The rows of one type. Columns that no row fills are left out."""
    columns = {
        "Reason": [f"`{reason}`" for reason in rows],
        "Status": [row.status for row in rows.values()],
        "Meaning": [row.meaning for row in rows.values()],
        "What to do": [row.do for row in rows.values()],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [tuple(shown), ("---",) * len(shown), *zip(*shown.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
