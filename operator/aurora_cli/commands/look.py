"""``status``, ``history`` and ``evidence``: commands that only read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Endpoint, Name, Output, UseSecret, Version, in_cluster, object_name
from aurora_cli.errors import Refused, StoreFault
from aurora_cli.store_access import open_store
from aurora_cli.tables import evidence_table, status_table
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import Format, show, show_document
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.gate import GatePolicy
from aurora_store import Keys, ObjectStore
from aurora_store.errors import StoreError
from aurora_store.keys import MAX_ATTEMPT_GAP, in_sequence, record_numbers
from aurora_store.registry import MAX_RECORDS_LISTED


@in_cluster
def status(
    cluster: Cluster,
    name: Annotated[
        str | None, typer.Argument(callback=object_name, metavar="NAME", help="Speculator. Unset: all.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="Show the speculators of all namespaces.")
    ] = False,
) -> None:
    """Show pods, versions, acceptance, rollout, training and conditions."""
    if everywhere and name is not None:
        raise Refused("a speculator with this name may be in several namespaces: use -n instead of --all-namespaces")
    if name is not None:
        show(status_table.detail(cluster.speculator(name), datetime.now(UTC)))
        return
    found = cluster.speculators(everywhere=everywhere)
    where = "in the cluster" if everywhere else f"in the namespace {cluster.namespace}"
    show(status_table.overview(found, everywhere=everywhere) if found else plain(f"no speculators {where}"))


@in_cluster
def history(cluster: Cluster, name: Name) -> None:
    """Show the last 20 decisions, oldest first, each with its reason."""
    show(status_table.history(cluster.speculator(name)))


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
    key, data = read_evidence(
        open_store(cluster, speculator, endpoint=endpoint, use_secret=use_secret), version, attempt
    )
    try:
        record = Evidence.from_json(data)
    except InvalidRecord as error:
        raise StoreFault(f"{key}: {error}") from error
    if output is Format.TABLE:
        show(
            evidence_table.detail(
                record, key, GatePolicy.of(speculator.parsed_section("validation", ValidationSpec)), datetime.now(UTC)
            )
        )
    else:
        show_document(json.loads(data), output)


def read_evidence(objects: ObjectStore, version: int, attempt: int | None) -> tuple[str, bytes]:
    """Key and bytes of one attempt at measuring ``version``; without ``attempt`` of the last.

    Raises :class:`StoreFault` when there is none, or when the store does not answer.
    """
    try:
        folder = Keys.evidence_of(version)
        numbers = record_numbers(objects.list(folder, limit=MAX_RECORDS_LISTED), folder)
        attempts = in_sequence(numbers, max_gap=MAX_ATTEMPT_GAP)
        if not attempts:
            raise StoreFault(f"the store has no evidence of version {version}: it was not measured yet")
        if attempt is not None and attempt not in attempts:
            raise StoreFault(f"the store has evidence of version {version} for attempt {', '.join(map(str, attempts))}")
        key = Keys.evidence(version, attempts[-1] if attempt is None else attempt)
        return key, objects.get(key)
    except StoreError as error:
        raise StoreFault(str(error)) from error
