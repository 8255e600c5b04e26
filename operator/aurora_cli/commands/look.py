"""``status``, ``history`` and ``evidence``: commands that only read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Group, RenderableType
from rich.live import Live

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.command_line import Endpoint, Name, Output, UseSecret, Version, in_cluster, object_name
from aurora_cli.errors import ClusterError, Refused
from aurora_cli.stored.evidence_reader import read_evidence
from aurora_cli.stored.store_access import open_store
from aurora_cli.tables import evidence_table, status_table
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import Format, as_text, console, document_of, list_of, show, show_document
from aurora_cli.tables.screenful import Screenful
from aurora_protocol.gate import GatePolicy

MIN_INTERVAL_SECONDS: Final = 0.5


@in_cluster
def status(
    cluster: Cluster,
    name: Annotated[
        str | None, typer.Argument(callback=object_name, metavar="NAME", help="Speculator. Unset: all.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Show the speculators of all namespaces.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=MIN_INTERVAL_SECONDS, help="Seconds between two refreshes with --watch.")
    ] = 2.0,
    output: Output = Format.TABLE,
) -> None:
    """Show pods, versions, acceptance, shape, rollout and conditions."""
    if everywhere and name is not None:
        raise Refused("a speculator with this name may be in several namespaces: use -n instead of --all-namespaces")
    if watch and output is not Format.TABLE:
        raise Refused("--watch shows a table; leave out -o")

    detail = status_table.watched_detail if watch and console().is_terminal else status_table.detail

    def look() -> RenderableType:
        now = datetime.now(UTC)
        if name is not None:
            return detail(cluster.speculator(name), now)
        found = cluster.speculators(everywhere=everywhere)
        where = "in the cluster" if everywhere else f"in the namespace {cluster.namespace}"
        return status_table.overview(found, now, everywhere=everywhere) if found else plain(f"no speculators {where}")

    if watch:
        _watch(look, interval)
    elif output is Format.TABLE:
        show(look())
    elif name is not None:
        show_document(document_of(cluster.speculator(name).raw), output)
    else:
        show_document(list_of([one.raw for one in cluster.speculators(everywhere=everywhere)]), output)


def _watch(look: Callable[[], RenderableType], interval_seconds: float) -> None:
    """Show what ``look`` returns until Ctrl-C. The first look must succeed. Later ones are tried again.

    During an outage the last view stays, below the error.
    """
    terminal = console()
    shown = last_view = look()
    try:
        if not terminal.is_terminal:
            _append_changes(shown, look, interval_seconds)
        with Live(Screenful(shown), console=terminal, auto_refresh=False, screen=True) as live:
            while True:
                live.update(Screenful(shown), refresh=True)
                time.sleep(interval_seconds)
                try:
                    shown = last_view = look()
                except ClusterError as error:
                    shown = Group(plain(f"error: {error}; trying again", "bad"), last_view)
    except KeyboardInterrupt:
        return


def _append_changes(shown: RenderableType, look: Callable[[], RenderableType], interval_seconds: float) -> NoReturn:
    """Without a terminal, print a view again whenever its text has changed."""
    last = ""
    while True:
        if (text := as_text(shown)) != last:
            typer.echo(text)
            last = text
        time.sleep(interval_seconds)
        try:
            shown = look()
        except ClusterError as error:
            shown = plain(f"error: {error}; trying again", "bad")


@in_cluster
def history(cluster: Cluster, name: Name, output: Output = Format.TABLE) -> None:
    """Show the last 20 decisions, oldest first, each with its reason."""
    found = cluster.speculator(name)
    if output is Format.TABLE:
        show(status_table.history(found, datetime.now(UTC)))
    else:
        entries = [entry.model_dump(mode="json", by_alias=True) for entry in found.status.history]
        show_document(entries, output)


@in_cluster
def evidence(
    cluster: Cluster,
    name: Name,
    version: Version,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Number of the measurement of this version. Unset: the last.")
    ] = None,
    endpoint: Endpoint = None,
    use_secret: UseSecret = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the ratios of a measurement with their intervals; with -o json the raw record."""
    speculator = cluster.speculator(name)
    objects = open_store(cluster, speculator, endpoint=endpoint, use_secret=use_secret)
    found = read_evidence(objects, name, version, attempt)
    if output is Format.TABLE:
        policy = GatePolicy.of(speculator.validation_spec())
        show(evidence_table.detail(found.record, found.key, policy, datetime.now(UTC)))
    else:
        show_document(json.loads(found.data), output)
