"""Shared by all commands: the flags that name the cluster, the cluster itself, and how an error ends the program.

Invariant: an error that a command raises is printed as one line to stderr, and the exit code is 1.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, Final, get_type_hints

import typer
from typer.core import TyperGroup

from aurora_cli.cluster import Cluster, connect
from aurora_cli.errors import CliError
from aurora_cli.tables.printing import Format
from aurora_store.errors import bounded_text

MAX_ERROR_CHARACTERS: Final = 1000
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", re.ASCII)


class Commands(TyperGroup):
    """A group of commands that prints errors to stderr."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            typer.echo(f"error: {bounded_text(str(error), MAX_ERROR_CHARACTERS)}", err=True)
            raise typer.Exit(1) from None


def new_app(*, help: str, add_completion: bool = False) -> typer.Typer:  # noqa: A002 - typer's own name
    """An application or a group of commands, with plain help texts."""
    return typer.Typer(
        cls=Commands,
        help=help,
        add_completion=add_completion,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def object_name(value: str | None) -> str | None:
    """Checks the name of an object. Raises :class:`typer.BadParameter`."""
    if value is not None and (len(value) > 253 or _NAME.fullmatch(value) is None):
        raise typer.BadParameter("a name has lower-case letters, digits, '-' and '.'")
    return value


Name = Annotated[str, typer.Argument(callback=object_name, metavar="NAME", help="Name of the speculator.")]
Version = Annotated[int, typer.Argument(min=0, max=99_999_999, metavar="VERSION", help="Version of the draft.")]
Output = Annotated[Format, typer.Option("--output", "-o", help="How to print.")]
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
_CLUSTER_FLAGS: Final[dict[str, Any]] = {
    "namespace": Annotated[
        str | None,
        typer.Option(
            "--namespace", "-n", callback=object_name, help="Namespace. Unset: that of the kubeconfig's context."
        ),
    ],
    "context": Annotated[
        str | None, typer.Option("--context", help="Context of the kubeconfig. Unset: the current one.")
    ],
    "kubeconfig": Annotated[
        str | None, typer.Option("--kubeconfig", help="Kubeconfig file. Unset: $KUBECONFIG, else ~/.kube/config.")
    ],
}


def in_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Hands a command its cluster: adds the flags that name it, and replaces them by the first argument."""
    hints = get_type_hints(command, include_extras=True)
    cluster_parameter, *own = inspect.signature(command).parameters.values()
    assert hints[cluster_parameter.name] is Cluster, "the first argument of a command is its cluster"

    def run(**arguments: Any) -> None:
        cluster = connect(**{flag: arguments.pop(flag) for flag in _CLUSTER_FLAGS})
        command(cluster, **arguments)

    parameters = [
        *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[one.name]) for one in own),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in _CLUSTER_FLAGS.items()
        ),
    ]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
