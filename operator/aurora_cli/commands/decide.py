"""Commands that decide: ``promote``, ``abort``, ``pin``, ``unpin``, ``pause``, ``resume``, ``measure`` and
``start-over``.

Each prints what it changed and what follows. ``--dry-run`` asks the API server to check the same patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from aurora_cli.cluster.changes import decide
from aurora_cli.cluster.cluster import Cluster
from aurora_cli.command_line import DryRun, Name, Output, Version, in_cluster
from aurora_cli.decisions import lost_records, measurement, rolls, versions
from aurora_cli.decisions.change import Change, other_managers
from aurora_cli.speculator import Speculator
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import Format, document_of, show, show_document, warn

RolledVersion = Annotated[
    int | None,
    typer.Argument(min=0, max=99_999_999, metavar="VERSION", help="Unset: the version of the roll under way."),
]


def carry_out(
    cluster: Cluster, name: str, decision: Callable[[Speculator], Change], *, dry_run: bool, output: Format
) -> None:
    """Make a decision and print it."""
    made = decide(cluster, name, decision, dry_run=dry_run)
    for manager in other_managers(made.before, made.change.fields):
        warn(plain(f"note: {manager} sets this field too and may set it back; change it at its source", "warning"))
    for note in made.change.notes:
        warn(plain(f"note: {note}", "warning"))
    if output is not Format.TABLE:
        show_document(document_of(made.after), output)
        return
    if not made.change.fields:
        show(plain(f"{name}: unchanged, because {made.change.effect}"))
        return
    mark = " (dry run, nothing was changed)" if dry_run else ""
    show(*(plain(f"{name}: {change}{mark}") for change in made.change.fields), plain(made.change.effect))


@in_cluster
def promote(
    cluster: Cluster,
    name: Name,
    version: RolledVersion = None,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Roll out a version that passed, without a judgement by live traffic."""
    carry_out(
        cluster, name, lambda one: versions.promote(one, version, cluster.kubectl_flags), dry_run=dry_run, output=output
    )


@in_cluster
def abort(
    cluster: Cluster,
    name: Name,
    version: RolledVersion = None,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Reject a version for good, and roll it back where it serves."""
    carry_out(
        cluster, name, lambda one: versions.abort(one, version, cluster.kubectl_flags), dry_run=dry_run, output=output
    )


@in_cluster
def pin(cluster: Cluster, name: Name, version: Version, dry_run: DryRun = False, output: Output = Format.TABLE) -> None:
    """Serve one version until it is unpinned. Version 0 is the initial draft."""
    carry_out(cluster, name, lambda one: rolls.pin(one, version), dry_run=dry_run, output=output)


@in_cluster
def unpin(cluster: Cluster, name: Name, dry_run: DryRun = False, output: Output = Format.TABLE) -> None:
    """Unset the pin, so that newer candidates roll out again."""
    carry_out(cluster, name, rolls.unpin, dry_run=dry_run, output=output)


@in_cluster
def pause(cluster: Cluster, name: Name, dry_run: DryRun = False, output: Output = Format.TABLE) -> None:
    """Start no roll, and stop a roll in progress before its next pod."""
    carry_out(cluster, name, rolls.pause, dry_run=dry_run, output=output)


@in_cluster
def resume(cluster: Cluster, name: Name, dry_run: DryRun = False, output: Output = Format.TABLE) -> None:
    """Let rolls start and continue."""
    carry_out(cluster, name, rolls.resume, dry_run=dry_run, output=output)


@in_cluster
def measure(cluster: Cluster, name: Name, dry_run: DryRun = False, output: Output = Format.TABLE) -> None:
    """Measure a candidate again now, after an attempt that failed."""
    carry_out(cluster, name, measurement.measure, dry_run=dry_run, output=output)


@in_cluster
def start_over(cluster: Cluster, name: Name, dry_run: DryRun = False, output: Output = Format.TABLE) -> None:
    """Begin again at version 0, after the store has lost the records."""
    carry_out(cluster, name, lost_records.start_over, dry_run=dry_run, output=output)
