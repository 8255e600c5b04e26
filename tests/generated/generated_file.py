"""A generated file, or a generated part of a file between two markers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class GeneratedFile:
    """A file and the function that gives its whole text."""

    path: str
    """From the repository's root."""
    render: Callable[[], str]

    @property
    def file(self) -> Path:
        return ROOT / self.path

    @property
    def is_current(self) -> bool:
        return self.file.exists() and self.file.read_text() == self.render()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(self.render())


def with_part(text: str, name: str, part: str) -> str:
    """``text`` with ``part`` between its markers ``<!-- generated: name -->`` and ``<!-- end -->``.

    Raises :class:`ValueError` when a marker is missing.
    """
    opening, closing = f"<!-- generated: {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(opening)
    _, closed, after = rest.partition(closing)
    if not (found and closed):
        raise ValueError(f"the markers {opening.strip()} and {closing} are missing")
    return f"{before}{opening}\n{part}\n{closing}{after}"
