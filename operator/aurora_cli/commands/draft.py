"""``draft export`` and ``draft check``: run ``aurora-draft`` in the trainer's pod.

A published head enters only when a speculator is created (``spec.draft.initial``), so there is no import.
"""

from __future__ import annotations

import contextlib
import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.cluster.pod_program import Container
from aurora_cli.command_line import Name, in_cluster, new_app
from aurora_cli.doctor.facts import TRAINER
from aurora_cli.errors import ProgramFailed, Refused
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import show

REMOVAL_SECONDS: Final = 30.0
"""Longest time that the removal of the copy in the pod may take. The pod's /tmp ends with the pod."""

draft = new_app(help="Publish a draft, or check whether a published head fits.")


class HeadFormat(StrEnum):
    """The engine that will load an exported head."""

    SGLANG = "sglang"
    SPECULATORS = "speculators"


def trainer_of(cluster: Cluster, name: str) -> Container:
    """The container of the trainer. Raises :class:`ProgramFailed` when no trainer runs."""
    snapshot = cluster.snapshot(name)
    pod = next((pod.name for pod in snapshot.pods_of(TRAINER) if pod.ready), None)
    if pod is None:
        why = "you may not read pods there" if "pods" in snapshot.unseen else "its pod is stopped or not ready"
        raise ProgramFailed(f"the trainer of {name} cannot be used: {why}; run `kubectl aurora doctor {name}`")
    return Container(cluster, pod, "trainer")


@draft.command("export")
@in_cluster
def export(
    cluster: Cluster,
    name: Name,
    to: Annotated[Path, typer.Option("--to", help="New or empty folder on this machine.")],
    version: Annotated[int | None, typer.Option(min=0, help="Version of the draft. Unset: the active one.")] = None,
    head_format: Annotated[
        HeadFormat, typer.Option("--format", help="Engine that will load the head; speculators is for vLLM.")
    ] = HeadFormat.SGLANG,
    with_embedding: Annotated[bool, typer.Option("--with-embedding", help="Store the target's embedding too.")] = False,
) -> None:
    """Copy a draft to this machine as a head that SGLang or vLLM loads."""
    trainer, folder = trainer_of(cluster, name), f"/tmp/head-{secrets.token_hex(8)}"  # noqa: S108 - the pod's own
    _make_empty(to)  # after the trainer is found, so that a mistyped NAME leaves no folder
    options = [f"--to={folder}", f"--format={head_format.value}"]
    options += [f"--version={version}"] if version is not None else []
    options += ["--with-embedding"] if with_embedding else []
    try:
        trainer.run("aurora-draft", "export", *options)
        trainer.copy_folder(folder, to)
    finally:
        with contextlib.suppress(ProgramFailed):  # the pod may be gone, and its /tmp with it
            trainer.run("rm", "-rf", folder, timeout_seconds=REMOVAL_SECONDS)
    show(
        plain(
            f"exported to {to}; read its README.md before you publish it: the draft learned from your users' requests"
        )
    )


def _make_empty(folder: Path) -> None:
    """Create the folder, unless it is there and empty. Raises :class:`Refused`, before anything runs in a pod."""
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Refused(f"{folder} exists and is not an empty folder; name another with --to")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder} cannot be written: {error.strerror}; name another folder with --to") from error


@draft.command("check")
@in_cluster
def check(
    cluster: Cluster,
    name: Name,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face id of the head, or a path in the trainer's pod.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Unset: main.")] = None,
) -> None:
    """Check whether a published head fits this speculator's target."""
    if model.startswith("-"):
        raise Refused("MODEL is a Hugging Face id such as my-org/my-head, or a path in the trainer's container")
    options = [] if revision is None else [f"--revision={revision}"]
    show(plain(trainer_of(cluster, name).run("aurora-draft", "check", model, *options).strip()))
