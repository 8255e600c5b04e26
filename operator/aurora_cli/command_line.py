"""Shared by all commands: the flags that name the cluster, the cluster itself, and how an error ends the program.

A plugin of kubectl gets its flags after ``kubectl aurora``, before or after the command. So ``-n``, ``--context`` and
``--kubeconfig`` are options of the program and of each command; those of the command win.

Invariant: an error that a command raises is printed as one line to stderr, and the exit code is 1. A command that mends
it follows on a line of its own, so that it can be copied.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer
from typer.core import TyperGroup

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.cluster.kubeconfig import Access, Connection, connect
from aurora_cli.errors import CliError, Refused
from aurora_cli.tables.printing import Format
from aurora_store.errors import bounded_text

PROGRAM: Final = "kubectl aurora"
MAX_ERROR_CHARACTERS: Final = 1000
MAX_COMMAND_CHARACTERS: Final = 8000
"""A printed command may hold the path of a kubeconfig."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", re.ASCII)
C = TypeVar("C", bound=Callable[..., Any])

Connect = Callable[[Access], Connection]


@dataclass(frozen=True)
class Session:
    """The flags before the command, and how to connect. Tests connect to a fake."""

    access: Access = field(default_factory=Access)
    connect: Connect = connect


class Commands(TyperGroup):
    """A group of commands that prints errors to stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            typer.echo(f"error: {bounded_text(str(error), MAX_ERROR_CHARACTERS)}", err=True)
            if isinstance(error, Refused) and error.command:
                typer.echo(f"   $ {bounded_text(error.command, MAX_COMMAND_CHARACTERS)}", err=True)
            raise typer.Exit(1) from None


def new_app(**settings: Any) -> typer.Typer:
    """An application or a group of commands, with plain help texts and without completion options of its own."""
    return typer.Typer(
        cls=Commands,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def object_name(value: str | None) -> str | None:
    """Checks the name of an object. Raises :class:`typer.BadParameter`."""
    if value is not None and (len(value) > 253 or _NAME.fullmatch(value) is None):
        raise typer.BadParameter("a name has lower-case letters, digits, '-' and '.'")
    return value


Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", callback=object_name, help="Namespace. Unset: that of the kubeconfig's context."),
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Unset: the current one.")]
Kubeconfig = Annotated[
    str | None, typer.Option("--kubeconfig", help="Kubeconfig file. Unset: $KUBECONFIG, else ~/.kube/config.")
]
Name = Annotated[str, typer.Argument(callback=object_name, metavar="NAME", help="Name of the speculator.")]
Version = Annotated[int, typer.Argument(min=0, max=99_999_999, metavar="VERSION", help="Version of the draft.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Let the API server check the change, and change nothing.")]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="URL at which this machine reaches the store, for example of a port-forward. Unset: the speculator's own.",
    ),
]
UseSecret = Annotated[
    bool,
    typer.Option(
        "--use-secret",
        help="Read the store's keys from the speculator's Secret, with your rights. Unset: from your environment.",
    ),
]


def remember_flags(
    ctx: typer.Context, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None
) -> None:
    """Keeps the flags that stand before the command."""
    given = ctx.obj if isinstance(ctx.obj, Session) else Session()
    ctx.obj = replace(given, access=Access(namespace, context, kubeconfig))


def in_cluster(command: C) -> C:
    """Hands a command its cluster: adds the flags that name it, and replaces them by the first argument."""
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    cluster_parameter, *own = signature.parameters.values()
    assert hints[cluster_parameter.name] is Cluster, "the first argument of a command is its cluster"

    @functools.wraps(command)
    def run(ctx: typer.Context, namespace: Any, context: Any, kubeconfig: Any, **arguments: Any) -> None:
        session = ctx.find_object(Session) or Session()
        before = session.access
        access = Access(namespace or before.namespace, context or before.context, kubeconfig or before.kubeconfig)
        connection = session.connect(access)
        command(Cluster(connection.api, connection.namespace, connection.kubectl_flags), **arguments)

    flags: dict[str, Any] = {"namespace": Namespace, "context": Context, "kubeconfig": Kubeconfig}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(p.replace(kind=keyword, annotation=hints[p.name]) for p in own),
        *(inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in flags.items()),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run  # type: ignore[return-value]
