"""``draft export`` and ``draft check``: run ``aurora-draft`` in the trainer's pod.

``kubectl cp`` unpacks only regular files, and none outside the folder that it is given.

Invariants: a copy that breaks off leaves no file. A published head enters only when a speculator is created
(``spec.draft.initial``), so there is no import.
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from aurora_cli.cluster import Cluster
from aurora_cli.command_line import Name, in_cluster, new_app
from aurora_cli.errors import ProgramFailed, Refused
from aurora_cli.kubectl import kubectl
from aurora_cli.tables.plain_text import plain
from aurora_cli.tables.printing import show

MAX_SECONDS: Final = 1800.0
"""Longest run of a program. A draft of some GB takes minutes on a slow line."""
REMOVAL_SECONDS: Final = 30.0
"""Longest time that the removal of the copy in the pod may take. The pod's /tmp ends with the pod."""
CONTAINER: Final = "trainer"

draft = new_app(help="Publish a draft, or check whether a published head fits.")


class HeadFormat(StrEnum):
    """The engine that will load an exported head."""

    SGLANG = "sglang"
    SPECULATORS = "speculators"


@dataclass(frozen=True)
class Trainer:
    """The pod of a trainer."""

    cluster: Cluster
    pod: str

    @classmethod
    def of(cls, cluster: Cluster, name: str) -> Trainer:
        """Raises :class:`ProgramFailed` when no trainer runs."""
        cluster.speculator(name)  # a mistyped name is the clearer error
        pod = cluster.ready_pod(name, "trainer")
        if pod is None:
            raise ProgramFailed(f"the trainer of {name} is stopped or not ready; run `kubectl aurora doctor {name}`")
        return cls(cluster, pod)

    def run(self, *program: str, seconds: float = MAX_SECONDS) -> str:
        """Run a program to its end, and return what it prints. Raises :class:`ProgramFailed`."""
        return kubectl(self.cluster, "exec", self.pod, f"--container={CONTAINER}", "--", *program, seconds=seconds)


@draft.command("export")
@in_cluster
def export(
    cluster: Cluster,
    name: Name,
    to: Annotated[Path, typer.Option("--to", help="New folder on this machine.")],
    version: Annotated[int | None, typer.Option(min=0, help="Version of the draft. Unset: the active one.")] = None,
    head_format: Annotated[
        HeadFormat, typer.Option("--format", help="Engine that will load the head; speculators is for vLLM.")
    ] = HeadFormat.SGLANG,
    with_embedding: Annotated[bool, typer.Option("--with-embedding", help="Store the target's embedding too.")] = False,
) -> None:
    """Copy a draft to this machine as a head that SGLang or vLLM loads."""
    if to.exists() or not to.absolute().parent.is_dir():
        raise Refused(f"{to} exists, or its parent folder does not; name a new folder with --to")
    trainer, folder = Trainer.of(cluster, name), f"/tmp/head-{secrets.token_hex(8)}"  # noqa: S108 - the pod's own
    options = [f"--to={folder}", f"--format={head_format.value}"]
    options += [f"--version={version}"] if version is not None else []
    options += ["--with-embedding"] if with_embedding else []
    try:
        trainer.run("aurora-draft", "export", *options)
        with tempfile.TemporaryDirectory(dir=to.absolute().parent, prefix=".aurora-") as part:
            place = ("cp", f"--container={CONTAINER}", f"{trainer.pod}:{folder}", f"{part}/head")
            kubectl(cluster, *place, seconds=MAX_SECONDS)
            Path(part, "head").rename(to)
    except OSError as error:
        raise Refused(f"{to} cannot be written: {error.strerror}; name another folder with --to") from error
    finally:
        with contextlib.suppress(ProgramFailed):  # the pod may be gone, and its /tmp with it
            trainer.run("rm", "-rf", folder, seconds=REMOVAL_SECONDS)
    show(plain(f"exported to {to}; before you publish it, read its README.md: the draft learned from your users"))


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
    show(plain(Trainer.of(cluster, name).run("aurora-draft", "check", model, *options).strip()))
