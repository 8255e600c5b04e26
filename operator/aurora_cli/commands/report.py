"""``report``: one speculator as a page that people open without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Endpoint, Name, UseSecret, in_cluster
from aurora_cli.errors import Refused
from aurora_cli.store_access import open_store
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import show


@in_cluster
def report(
    cluster: Cluster,
    name: Name,
    file: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write, such as report.html.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    endpoint: Endpoint = None,
    use_secret: UseSecret = False,
) -> None:
    """Write an HTML report: speedups, acceptance, rolls, costs and evidence."""
    make = _renderer()
    if (file.exists() and not overwrite) or not file.absolute().parent.is_dir():
        raise Refused(f"{file} exists, or its folder does not; name another file with -o, or add --overwrite")
    speculator = cluster.speculator(name)
    page = make(speculator, open_store(cluster, speculator, endpoint=endpoint, use_secret=use_secret))
    _write(file, page, overwrite=overwrite)
    show(plain(f"wrote {file}; it names the model and the hardware, and holds no request and no credential"))


def _renderer() -> Callable[[Any, Any], bytes]:
    """Makes the page. Raises :class:`Refused` where the packages that draw are not installed."""
    try:
        from aurora_cli.report.page import render
        from aurora_cli.report.records import read_records
    except ImportError as error:
        raise Refused(f"reports need the extra report ({error.name} is missing): pip install '.[report]'") from error
    return lambda speculator, objects: render(speculator, read_records(objects), datetime.now(UTC)).encode()


def _write(file: Path, data: bytes, *, overwrite: bool) -> None:
    """Without ``overwrite``, a file that appeared meanwhile stays."""
    try:
        with file.open("wb" if overwrite else "xb") as opened:
            opened.write(data)
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}") from error
