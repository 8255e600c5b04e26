"""Writes tables, JSON and YAML to the terminal.

Invariants: ``-o json`` and ``-o yaml`` print nothing but the document, so that programs can read it. A table that does
not go to a terminal is not cut to the width of one, so that ``grep`` finds whole lines.
"""

from __future__ import annotations

import io
import json
import sys
from enum import StrEnum
from typing import Any, Final

import yaml
from rich.console import Console, RenderableType
from rich.text import Text

PIPE_WIDTH: Final = 10_000
"""Characters of a line that goes to a file or another program."""
_PLAIN: Final[dict[str, Any]] = {"markup": False, "highlight": False, "emoji": False}


class Format(StrEnum):
    """Values of ``-o``."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def show(*parts: RenderableType) -> None:
    """Print tables and texts. Colours are left out where there is no terminal, and where ``NO_COLOR`` is set."""
    if not sys.stdout.isatty():
        sys.stdout.write(as_text(*parts))
        return
    terminal = Console(**_PLAIN)
    for part in parts:
        terminal.print(part, crop=False)


def as_text(*parts: RenderableType, width: int = PIPE_WIDTH) -> str:
    """Tables and texts for a file or a program: without colours, and without spaces at the ends of lines."""
    terminal = Console(width=width, no_color=True, file=io.StringIO(), **_PLAIN)
    with terminal.capture() as captured:
        for part in parts:
            terminal.print(part)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def show_document(value: Any, output: Format) -> None:
    """Print a value as JSON or YAML. Characters that would control a terminal are escaped in both."""
    if output is Format.YAML:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=120))
    else:
        sys.stdout.write(f"{json.dumps(value, indent=2)}\n")


def warn(text: Text) -> None:
    """Print a note to stderr, so that it is in no document."""
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else PIPE_WIDTH, **_PLAIN).print(text)
