"""Entry points: ``kubectl-aurora``, which kubectl runs as ``kubectl aurora``, and ``kubectl_complete-aurora``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

from aurora_cli.command_line import PROGRAM, Session, new_app, remember_flags
from aurora_cli.commands import decide, diagnose, look, shell
from aurora_cli.commands.draft import draft
from aurora_cli.commands.report import report
from aurora_cli.commands.store import store

COMMANDS: Final[Sequence[Callable[..., None]]] = (
    look.status,
    look.history,
    look.evidence,
    report,
    diagnose.doctor,
    decide.promote,
    decide.abort,
    decide.pin,
    decide.unpin,
    decide.pause,
    decide.resume,
    decide.measure,
    decide.start_over,
    shell.completion,
)
app = new_app(help="Look at Aurora's speculators, decide about their drafts, and find out what is wrong.")
app.callback()(remember_flags)
for command in COMMANDS:
    app.command()(command)
app.add_typer(store, name="store")
app.add_typer(draft, name="draft")


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == [shell.COMPLETE]:
        shell.complete(app, sys.argv[2:], Session())
    else:
        app(prog_name=PROGRAM)


def complete() -> None:
    """Complete the words of a command line for kubectl."""
    shell.complete(app, sys.argv[1:], Session())
