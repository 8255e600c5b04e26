"""Reads the repository's Markdown: pages, links, headings, code spans and fenced blocks, as far as the tests need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[3]
SKIPPED_FOLDERS = frozenset({".venv", ".git", "node_modules"})
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")
_HEADING = re.compile(r"^#{1,6} +(.*?)\s*$")


@dataclass(frozen=True)
class Line:
    """One line of a page. ``language`` is the language of the fenced block around the line, None outside of blocks."""

    number: int
    text: str
    language: str | None


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """The path from the repository's root."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """All lines but the fences themselves."""
        found: list[Line] = []
        language: str | None = None
        for number, text in enumerate(self.path.read_text().splitlines(), 1):
            if text.lstrip().startswith("```"):
                language = None if language is not None else text.strip("` ")
            else:
                found.append(Line(number, text, language))
        return tuple(found)

    @property
    def prose(self) -> Iterator[Line]:
        """The lines outside of fenced blocks."""
        return (line for line in self.lines if line.language is None)

    def blocks(self, language: str) -> Iterator[str]:
        """The texts of the fenced blocks in ``language``. "" stands for blocks without a language."""
        block: list[str] = []
        previous = 0
        for line in self.lines:
            if line.language != language:
                continue
            if block and line.number != previous + 1:
                yield "\n".join(block)
                block = []
            block.append(line.text)
            previous = line.number
        if block:
            yield "\n".join(block)

    @cached_property
    def _paragraphs(self) -> tuple[tuple[int, str], ...]:
        """(number of the first line, text) of each paragraph, list or table row of the prose, on one line."""
        found: list[tuple[int, str]] = []
        previous = 0
        for line in self.prose:
            continues = line.number == previous + 1 and not line.text.startswith(("|", "#"))
            if line.text.strip():
                if continues and found:
                    number, text = found.pop()
                    found.append((number, f"{text} {line.text.strip()}"))
                else:
                    found.append((line.number, line.text))
                previous = line.number
        return tuple(found)

    @property
    def links(self) -> Iterator[tuple[int, str]]:
        """(line number, target) of every link and image outside of code."""
        for number, text in self._paragraphs:
            yield from ((number, target) for target in _LINK.findall(_SPAN.sub("", text)))

    @property
    def spans(self) -> Iterator[tuple[int, str]]:
        """(line number, text) of every code span in prose. A span may continue on the next line."""
        for number, text in self._paragraphs:
            yield from ((number, span) for span in _SPAN.findall(text))

    @property
    def code(self) -> Iterator[str]:
        """Every code span, and every line of a fenced block."""
        yield from (text for _, text in self.spans)
        yield from (line.text for line in self.lines if line.language is not None)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What a link may name behind a ``#``, as GitHub spells it."""
        headings = (match[1] for line in self.prose if (match := _HEADING.match(line.text)))
        return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)

    @property
    def table_rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of every row of every table, header rows included and rulers left out."""
        for line in self.prose:
            if line.text.startswith("|") and not set(line.text) <= set("|-: "):
                yield tuple(cell.strip() for cell in line.text.strip().strip("|").split(" | "))


def pages() -> list[Page]:
    """Every Markdown file of the repository."""
    files = (path for path in ROOT.rglob("*.md") if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts))
    return [Page(path) for path in sorted(files)]


def page(name: str) -> Page:
    return Page(ROOT / name)
