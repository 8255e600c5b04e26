"""Entry point of ``kubectl-aurora``, which kubectl runs as ``kubectl aurora``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from aurora_cli.command_line import new_app
from aurora_cli.commands import decide, look
from aurora_cli.commands.doctor import doctor
from aurora_cli.commands.draft import draft
from aurora_cli.commands.erase import erase
from aurora_cli.commands.report import report
from aurora_cli.commands.store import store

COMMANDS: Final[Sequence[Callable[..., None]]] = (
    look.status,
    look.history,
    look.evidence,
    report,
    doctor,
    decide.abort,
    decide.pin,
    decide.unpin,
    decide.pause,
    decide.resume,
    erase,
)
app = new_app(
    help="Look at Aurora's speculators, decide about their drafts, and find out what is wrong.", add_completion=True
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(store, name="store")
app.add_typer(draft, name="draft")


def main() -> None:
    """Run the command line."""
    app()
