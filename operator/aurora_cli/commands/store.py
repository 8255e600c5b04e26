"""``store ls``, ``store du`` and ``store verify``: commands that read a speculator's objects.

No command deletes the remains of an unfinished upload: only the trainer knows whether one of its uploads is under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.command_line import Endpoint, Name, Output, UseSecret, in_cluster, new_app
from aurora_cli.errors import StoreFault
from aurora_cli.stored.store_access import open_store
from aurora_cli.stored.usage import usage
from aurora_cli.stored.verification import Verification
from aurora_cli.tables import store_table
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import Format, show, show_document, warn
from aurora_store import ObjectStore
from aurora_store.errors import StoreError

store = new_app(help="List, size up and check a speculator's objects in the store. Nothing is written.")


@contextmanager
def _opened(cluster: Cluster, name: str, endpoint: str | None, use_secret: bool) -> Iterator[ObjectStore]:
    try:
        yield open_store(cluster, cluster.speculator(name), endpoint=endpoint, use_secret=use_secret)
    except StoreError as error:
        raise StoreFault(str(error)) from error


@store.command()
@in_cluster
def ls(
    cluster: Cluster,
    name: Name,
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Beginning of the keys, such as evidence/.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most objects to list.")] = 1000,
    endpoint: Endpoint = None,
    use_secret: UseSecret = False,
    output: Output = Format.TABLE,
) -> None:
    """List objects with their sizes. Keys are relative to the speculator's root."""
    with _opened(cluster, name, endpoint, use_secret) as objects:
        found = list(islice(objects.list_objects(prefix), limit + 1))
    if len(found) > limit:
        warn(plain(f"note: only the first {limit} objects are shown; raise --limit, or name a prefix", "warning"))
    found = found[:limit]
    if output is Format.TABLE:
        show(store_table.listing(found, datetime.now(UTC)))
    else:
        documents = [{"key": o.key, "bytes": o.size_bytes, "modified": o.modified.isoformat()} for o in found]
        show_document(documents, output)


@store.command()
@in_cluster
def du(
    cluster: Cluster,
    name: Name,
    endpoint: Endpoint = None,
    use_secret: UseSecret = False,
    output: Output = Format.TABLE,
) -> None:
    """Sum up the objects by kind."""
    with _opened(cluster, name, endpoint, use_secret) as objects:
        kinds = usage(objects.list_objects(""))
    if output is Format.TABLE:
        rows = [(one.kind, one.objects, one.size_bytes, one.newest) for one in kinds]
        show(store_table.usage(rows, datetime.now(UTC)))
    else:
        show_document([{"kind": o.kind, "objects": o.objects, "bytes": o.size_bytes} for o in kinds], output)


@store.command()
@in_cluster
def verify(
    cluster: Cluster,
    name: Name,
    digests: Annotated[bool, typer.Option("--digests", help="Download every draft and compare its digests.")] = False,
    endpoint: Endpoint = None,
    use_secret: UseSecret = False,
    output: Output = Format.TABLE,
) -> None:
    """Check that records and their data are undamaged. If not, exit with 1."""
    with _opened(cluster, name, endpoint, use_secret) as objects:
        check = Verification(objects, digests=digests)
        check.run()
    faults = [(fault.key, fault.message) for fault in check.faults]
    if output is Format.TABLE:
        show(store_table.verification(check.checked, faults))
    else:
        listed = [{"key": key, "fault": message} for key, message in faults]
        show_document({"whole": not faults, "objects": dict(check.checked), "faults": listed}, output)
    if faults:
        raise typer.Exit(1)
