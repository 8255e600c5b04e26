"""``kubectl aurora doctor``: the findings, numbered, each with the command that mends it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from aurora_cli.doctor.diagnosis import is_well
from aurora_cli.doctor.facts import Snapshot
from aurora_cli.doctor.finding import Finding, Severity
from aurora_cli.tables.plain_text import plain

_STYLES = {Severity.PROBLEM: "bad", Severity.WARNING: "warning", Severity.NOTE: "quiet"}


def report(snapshot: Snapshot, findings: Sequence[Finding]) -> RenderableType:
    """All findings, the likeliest cause first."""
    return Group(*_lines(snapshot, findings))


def _lines(snapshot: Snapshot, findings: Sequence[Finding]) -> Iterator[RenderableType]:
    if is_well(findings):
        yield plain(f"{snapshot.speculator.name}: nothing is wrong", "good")
    for number, found in enumerate(findings, 1):
        mark = plain(found.severity.name.lower(), _STYLES[found.severity])
        yield Text.assemble(f"{number}. ", mark, ": ", plain(found.title, "strong"))
        if found.evidence:
            yield _indented(plain(found.evidence, "quiet"))
        if found.advice:
            yield _indented(plain(found.advice))
        for command in found.commands:
            yield _whole_line(f"   $ {command}")
    if snapshot.unseen:
        yield plain(f"note: you may not read {', '.join(snapshot.unseen)}, so a cause may be missing", "warning")


def _whole_line(command: str) -> Text:
    """A line that only the terminal itself wraps, so that it can be copied."""
    text = plain(command)
    text.no_wrap, text.overflow = True, "ignore"
    return text


def _indented(text: Text) -> RenderableType:
    return Padding(text, (0, 0, 0, 3), expand=False)


def as_document(snapshot: Snapshot, findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "name": snapshot.speculator.name,
        "namespace": snapshot.speculator.namespace,
        "well": is_well(findings),
        "findings": [
            {
                "severity": found.severity.name.lower(),
                "title": found.title,
                "evidence": found.evidence,
                "advice": found.advice,
                "commands": list(found.commands),
            }
            for found in findings
        ],
        "unseen": list(snapshot.unseen),
    }
