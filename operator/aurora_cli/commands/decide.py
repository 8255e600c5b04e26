"""Commands that decide: ``abort``, ``pin``, ``unpin``, ``pause`` and ``resume``.

Each prints what it changed and what follows. ``--dry-run`` asks the API server to check the same patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from aurora_cli import decisions
from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Name, Version, in_cluster
from aurora_cli.decisions import Change
from aurora_cli.speculator import Speculator
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import show, warn

DryRun = Annotated[bool, typer.Option("--dry-run", help="Let the API server check the change, and change nothing.")]


def _carry_out(cluster: Cluster, name: str, decision: Callable[[Speculator], Change], *, dry_run: bool) -> None:
    change = decision(cluster.speculator(name))
    if change.patch:
        cluster.patch(name, change.patch, dry_run=dry_run)
    for note in change.notes:
        warn(plain(f"note: {note}", "warning"))
    if not change.patch:
        show(plain(f"{name}: unchanged, because {change.effect}"))
    else:
        show(plain(f"{name}: {change.effect}{' (dry run, nothing was changed)' if dry_run else ''}"))


@in_cluster
def abort(
    cluster: Cluster,
    name: Name,
    version: Annotated[
        int | None,
        typer.Argument(min=0, max=99_999_999, metavar="VERSION", help="Unset: the version of the roll under way."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Reject a version for good, and roll it back where it serves."""
    _carry_out(cluster, name, lambda one: decisions.abort(one, version), dry_run=dry_run)


@in_cluster
def pin(cluster: Cluster, name: Name, version: Version, dry_run: DryRun = False) -> None:
    """Serve one version until it is unpinned, without a canary. Version 0 is the initial draft."""
    _carry_out(cluster, name, lambda one: decisions.pin(one, version), dry_run=dry_run)


@in_cluster
def unpin(cluster: Cluster, name: Name, dry_run: DryRun = False) -> None:
    """Unset the pin, so that newer candidates roll out again."""
    _carry_out(cluster, name, decisions.unpin, dry_run=dry_run)


@in_cluster
def pause(cluster: Cluster, name: Name, dry_run: DryRun = False) -> None:
    """Start no roll, and stop a roll in progress before its next pod."""
    _carry_out(cluster, name, decisions.pause, dry_run=dry_run)


@in_cluster
def resume(cluster: Cluster, name: Name, dry_run: DryRun = False) -> None:
    """Let rolls start and continue."""
    _carry_out(cluster, name, decisions.resume, dry_run=dry_run)
