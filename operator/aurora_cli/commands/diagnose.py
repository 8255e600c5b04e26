"""``doctor``: what is wrong with a speculator, and the command that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.command_line import Name, Output, in_cluster
from aurora_cli.doctor.diagnosis import diagnose, requires_action
from aurora_cli.tables import findings_table
from aurora_cli.tables.printing import Format, show, show_document


@in_cluster
def doctor(
    cluster: Cluster,
    name: Name,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if there is a problem. Warnings and notes give 0.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Name the likely faults, the likeliest first, with the commands to run."""
    snapshot = cluster.snapshot(name)
    findings = [found.in_cluster(cluster.kubectl_flags) for found in diagnose(snapshot)]
    if output is Format.TABLE:
        show(findings_table.report(snapshot, findings))
    else:
        show_document(findings_table.as_document(snapshot, findings), output)
    if exit_code and requires_action(findings):
        raise typer.Exit(1)
