"""Texts of others made safe for a terminal, and numbers and times as kubectl shows them. Pure.

Why: a message of a condition may come from the store or from a pod. An escape sequence in it could hide or rewrite what
a person sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from aurora_store.errors import bounded_text

MAX_TEXT_CHARACTERS: Final = 2000
NONE: Final = "-"
"""An empty cell."""
_STYLES: Final = {"good": "green", "warning": "yellow", "bad": "red", "quiet": "dim", "strong": "bold"}


def plain(value: object, style: str = "") -> Text:
    """``value`` on one line, without control characters and without markup.

    Args:
        style: good, warning, bad, quiet or strong.
    """
    return Text(bounded_text(str(value), MAX_TEXT_CHARACTERS), style=_STYLES.get(style, ""))


def table(*columns: str, rows: Sequence[Sequence[Any]] = (), last_wraps: bool = True) -> Table:
    """A table without lines, as kubectl prints them. A cell without a value is a dash.

    Args:
        columns: their headings. No heading is shown if all are empty.
        last_wraps: the last column holds a long text, which may take several lines. The others never wrap.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(columns))
    for number, column in enumerate(columns):
        wraps = last_wraps and number == len(columns) - 1
        made.add_column(column, no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else plain(NONE if cell in (None, "") else cell) for cell in row))
    return made


def age(then: datetime | None, now: datetime) -> str:
    """How long ago, in the two largest units at most: ``45s``, ``12m``, ``3h20m``, ``5d2h``."""
    if then is None:
        return NONE
    whole = max(0, int((now - then).total_seconds()))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 60:
        return f"{minutes}m"
    if hours < 24:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{days}d{hours % 24}h" if hours % 24 and days < 10 else f"{days}d"


def count(number: int) -> str:
    """A number of tokens for people: ``950``, ``12.3k``, ``4.5M``."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if number >= limit:
            return f"{number / (1000 if unit == 'k' else limit):.1f}{unit}"
    return str(number)
