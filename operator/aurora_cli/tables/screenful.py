"""A view in the rows of the terminal, for ``--watch``."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment

from aurora_cli.tables.plain_text import plain


@dataclass(frozen=True)
class Screenful:
    """A view that says in its last row how many rows the terminal is too short for. rich alone cuts in silence."""

    view: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = options.size.height
        lines = console.render_lines(self.view, options.reset_height(), pad=False)
        shown = lines if len(lines) <= rows else lines[: rows - 1]
        for line in shown:
            yield from line
            yield Segment.line()
        if hidden := len(lines) - len(shown):
            hint = plain(f"{hidden} more lines: enlarge the terminal, or leave out --watch", "warning")
            hint.no_wrap = True
            yield hint
