"""``doctor``: what is wrong with a speculator, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Name, Output, in_cluster
from aurora_cli.doctor import Finding, Severity, diagnose
from aurora_cli.errors import ClusterError
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import Format, show, show_document, warn

_STYLES = {Severity.PROBLEM: "bad", Severity.WARNING: "warning", Severity.NOTE: "quiet"}


@in_cluster
def doctor(
    cluster: Cluster,
    name: Name,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if there is a problem. Warnings and notes give 0.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Name what is wrong, problems first, with the commands to run."""
    one = cluster.speculator(name)
    lease = None
    try:
        lease = cluster.lease(*one.operator_lease) if one.operator_lease else None
    except ClusterError as error:
        warn(plain(f"note: whether the operator runs is not known: {error}", "warning"))
    findings = diagnose(one, lease, datetime.now(UTC), cluster.kubectl_flags)
    if output is Format.TABLE:
        show(*report(name, findings))
    else:
        show_document([asdict(one) | {"severity": one.severity.name.lower()} for one in findings], output)
    if exit_code and any(found.severity is Severity.PROBLEM for found in findings):
        raise typer.Exit(1)


def report(name: str, findings: Sequence[Finding]) -> Iterator[RenderableType]:
    """The findings, numbered."""
    if all(found.severity is Severity.NOTE for found in findings):
        yield plain(f"{name}: nothing is wrong", "good")
    for number, found in enumerate(findings, 1):
        severity = plain(found.severity.name.lower(), _STYLES[found.severity])
        yield Text.assemble(f"{number}. ", severity, ": ", plain(found.meaning, "strong"))
        yield _indented(plain(found.evidence, "quiet"))
        yield _indented(plain(found.do))
        for command in found.commands:
            line = plain(f"   $ {command}")
            line.no_wrap, line.overflow = True, "ignore"  # only the terminal itself wraps it, so that it can be copied
            yield line


def _indented(text: Text) -> RenderableType:
    return Padding(text, (0, 0, 0, 3), expand=False)
