"""Completion for shells: kubectl asks ``kubectl_complete-aurora``, and ``completion`` prints such a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import typer
from typer.main import get_command

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.cluster.kubeconfig import Access
from aurora_cli.command_line import Session
from aurora_cli.completion import Directive, Position, fixed_candidates, position
from aurora_cli.errors import CliError
from aurora_cli.tables.printing import Format

COMPLETE: Final = "__complete"
"""The word that makes ``kubectl-aurora`` complete instead of run."""
_CHOICES: Final = {"output": tuple(Format)}
_FILES: Final = frozenset({"kubeconfig", "file"})
"""Options whose value is the name of a file."""
_SCRIPT: Final = f"""\
#!/bin/sh
# Save as an executable file kubectl_complete-aurora on PATH. kubectl's own completion must be set up.
exec kubectl-aurora {COMPLETE} "$@"
"""


def completion() -> None:
    """Print the program that completes `kubectl aurora` in a shell."""
    typer.echo(_SCRIPT, nl=False)


def complete(app: typer.Typer, words: Sequence[str], session: Session) -> None:
    """Print the candidates for the last of ``words``, and a directive."""
    where = position(get_command(app), words)
    for candidate in dict.fromkeys((*fixed_candidates(where, _CHOICES), *_from_cluster(where, session))):
        typer.echo(candidate)
    files = where.option is not None and where.option.name in _FILES
    typer.echo(f":{int(Directive.FILES if files else Directive.NO_FILES)}")


def _from_cluster(where: Position, session: Session) -> Iterator[str]:
    """Names of speculators, and the versions of one. Nothing where the cluster cannot be asked."""
    flags = (where.options.get(name) for name in ("namespace", "context", "kubeconfig"))
    try:
        if where.argument == "name":
            connection = session.connect(Access(*flags))
            found = [one.name for one in Cluster(connection.api, connection.namespace).speculators()]
        elif where.argument == "version" and where.arguments:
            connection = session.connect(Access(*flags))
            one = Cluster(connection.api, connection.namespace).speculator(where.arguments[0])
            versions = {*one.open_versions(), *(entry.version for entry in one.status.history)}
            found = [str(version) for version in sorted(versions)]
        else:
            return
    except CliError:
        return
    yield from (candidate for candidate in found if candidate.startswith(where.typed))
