"""``store verify``: checks a speculator's objects in the store. Nothing is written."""

from __future__ import annotations

from typing import Annotated

import typer

from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Endpoint, Name, Output, UseSecret, in_cluster, new_app
from aurora_cli.errors import StoreFault
from aurora_cli.store_access import open_store
from aurora_cli.tables.plain_text import plain, table
from aurora_cli.tables.printing import Format, show, show_document
from aurora_cli.verification import Verification
from aurora_store.errors import StoreError

store = new_app(help="Check a speculator's objects in the store. Nothing is written.")


@store.callback()
def _group() -> None:
    """Check a speculator's objects in the store. Nothing is written."""


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
    try:
        objects = open_store(cluster, cluster.speculator(name), endpoint=endpoint, use_secret=use_secret)
        check = Verification(objects, digests=digests)
        check.run()
    except StoreError as error:
        raise StoreFault(str(error)) from error
    counts = ", ".join(f"{number} in {folder}/" for folder, number in sorted(check.checked.items())) or "no objects"
    if output is not Format.TABLE:
        listed = [{"key": key, "fault": message} for key, message in check.faults]
        show_document({"whole": not listed, "objects": dict(check.checked), "faults": listed}, output)
    elif check.faults:
        show(plain(f"{len(check.faults)} faults in {counts}", "bad"))
        show(table("KEY", "FAULT", rows=check.faults))
    else:
        show(plain(f"whole: {counts}", "good"))
    if check.faults:
        raise typer.Exit(1)
