"""``report``: one speculator as a page that people open without a cluster.

Invariants: the file appears whole or not at all. A file that exists is replaced only if the user says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Endpoint, Name, UseSecret, in_cluster
from aurora_cli.errors import Refused
from aurora_cli.report.builder import build
from aurora_cli.report.page.document import render
from aurora_cli.report.stored_records import StoredRecords
from aurora_cli.report_reader import read_records
from aurora_cli.store_access import open_store
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import show

_NO_HARD_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
_WITHOUT_HARD_LINKS: Final = "; on a file system without hard links, add --overwrite"


@in_cluster
def report(
    cluster: Cluster,
    name: Name,
    file: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write, such as report.html.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    status_only: Annotated[
        bool, typer.Option("--status-only", help="Do not read the store: a short report, without charts of versions.")
    ] = False,
    endpoint: Endpoint = None,
    use_secret: UseSecret = False,
) -> None:
    """Write an HTML report: speedups, acceptance, shapes, rolls, costs and evidence."""
    _check(file, overwrite=overwrite)
    if status_only and (endpoint is not None or use_secret):
        raise Refused("--status-only reads no store; leave out --endpoint and --use-secret")
    speculator = cluster.speculator(name)
    records = (
        StoredRecords(was_read=False)
        if status_only
        else read_records(open_store(cluster, speculator, endpoint=endpoint, use_secret=use_secret))
    )
    page = render(build(speculator, records, datetime.now(UTC))).encode()
    _write(file, page, overwrite=overwrite)
    show(
        plain(
            f"wrote {file}, {len(page) >> 10} KiB; it names the model and the hardware, "
            "and holds no request and no credential"
        )
    )


def _check(file: Path, *, overwrite: bool) -> None:
    """Refuses a place that cannot be written, before anything is read."""
    try:
        if file.is_dir():
            raise Refused(f"{file} is a folder; name a file with -o")
        if not file.parent.is_dir():
            raise Refused(f"the folder {file.parent} does not exist; create it, or name another file with -o")
        if file.is_symlink():
            raise Refused(f"{file} is a symlink; name the file itself with -o")
        if file.exists() and not file.is_file():
            raise Refused(f"{file} is not a regular file; name another file with -o")
        if file.exists() and not overwrite:
            raise Refused(_exists(file))
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}") from error


def _write(file: Path, data: bytes, *, overwrite: bool) -> None:
    """Write beside the file, then move into place. Without ``overwrite``, a file that appeared meanwhile stays."""
    part = file.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as opened:
            opened.write(data)
        if overwrite:
            part.replace(file)
        else:
            os.link(part, file)  # unlike a rename, it never replaces; the second name is removed below
    except FileExistsError as error:
        raise Refused(_exists(file)) from error
    except OSError as error:
        hint = "" if overwrite or error.errno not in _NO_HARD_LINKS else _WITHOUT_HARD_LINKS
        raise Refused(f"{file} cannot be written: {error.strerror}{hint}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _exists(file: Path) -> str:
    return f"{file} exists; name another file with -o, or add --overwrite"
