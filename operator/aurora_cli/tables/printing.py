"""Writes tables, JSON and YAML to the terminal.

Invariants: ``-o json`` and ``-o yaml`` print nothing but the document, so that programs can read it. A table that does
not go to a terminal is not cut to the width of one, so that ``grep`` finds whole lines.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import yaml
from rich.console import Console, RenderableType
from rich.text import Text

PIPE_WIDTH: Final = 10_000
"""Characters of a line that goes to a file or another program."""


class Format(StrEnum):
    """Values of ``-o``."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def console(*, stderr: bool = False) -> Console:
    """The terminal. Colours are left out where it has none, and where ``NO_COLOR`` is set."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def show(*parts: RenderableType) -> None:
    """Print tables and texts."""
    terminal = console()
    if terminal.is_terminal:
        for part in parts:
            terminal.print(part, crop=False)
    else:
        sys.stdout.write(as_text(*parts))


def as_text(*parts: RenderableType) -> str:
    """Tables and texts for a file or a program: without colours, and without spaces at the ends of lines."""
    terminal = Console(width=PIPE_WIDTH, markup=False, highlight=False, emoji=False, no_color=True, file=io.StringIO())
    with terminal.capture() as captured:
        for part in parts:
            terminal.print(part)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def show_document(value: Any, output: Format) -> None:
    """Print a value as JSON or YAML. Characters that would control a terminal are escaped in both."""
    text = (
        yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=120)
        if output is Format.YAML
        else f"{json.dumps(value, indent=2)}\n"
    )
    sys.stdout.write(text)


def warn(text: Text) -> None:
    """Print a note to stderr, so that it is in no document."""
    console(stderr=True).print(text)


def document_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A resource as ``kubectl get -o yaml`` shows it: without ``managedFields``."""
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    return {**raw, "metadata": metadata}


def list_of(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several resources in one document."""
    return {"apiVersion": "v1", "kind": "List", "items": [document_of(item) for item in items]}
