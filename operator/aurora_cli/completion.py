"""Completes words of the command line, in the form that kubectl asks of its plugins.

kubectl runs ``kubectl_complete-aurora`` with the words after ``kubectl aurora``; the last one is being typed. The
program prints one candidate a line, and last a line with a directive (that of cobra, the library of kubectl).

Invariant: completion never fails and never writes. Without a cluster it completes commands and options only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Directive(IntEnum):
    """What the shell does with the candidates."""

    FILES = 0
    """Complete names of files, if there are no candidates."""
    NO_FILES = 4


@dataclass(frozen=True)
class Position:
    """Where in a command the word stands that is being typed."""

    command: Any
    """The command, as typer made it."""
    typed: str
    option: Any = None
    """The option whose value is typed, if any."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Values that were given before, by the option's name."""
    arguments: Sequence[str] = ()
    """Arguments of the command that were given before."""

    @property
    def argument(self) -> str:
        """The name of the argument that is typed; empty where there is none."""
        if self.option is not None or self.typed.startswith("-") or _commands(self.command):
            return ""
        names = [one.name for one in self.command.params if one.param_type_name == "argument"]
        return names[len(self.arguments)] if len(self.arguments) < len(names) else ""


def position(root: Any, words: Sequence[str]) -> Position:
    """The position of the last of ``words``."""
    *before, typed = words or [""]
    command, waiting, options, arguments = root, None, dict[str, str](), list[str]()
    for word in before:
        if waiting is not None:
            options[waiting.name], waiting = word, None
        elif word.startswith("-"):
            name, _, value = word.partition("=")
            option = _option(command, name) or _option(root, name)
            if option is not None and value:
                options[option.name] = value
            elif option is not None and not option.is_flag:
                waiting = option
        elif not arguments and word in _commands(command):
            command = _commands(command)[word]
        else:
            arguments.append(word)
    if waiting is None and typed.startswith("--") and "=" in typed:
        name, _, value = typed.partition("=")
        return Position(command, value, _option(command, name) or _option(root, name), options, arguments)
    return Position(command, typed, waiting, options, arguments)


def fixed_candidates(where: Position, choices: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """The candidates that need no cluster: commands, options, and the values of an option with few.

    Args:
        choices: those values, by the option's name.
    """
    if where.option is not None:
        found = iter(choices.get(where.option.name, ()))
    elif where.typed.startswith("-"):
        found = (name for one in where.command.params if one.param_type_name == "option" for name in one.opts)
        found = (name for name in found if name.startswith("--") and name not in where.options)
    else:
        found = (name for name, one in _commands(where.command).items() if not one.hidden)
    return (candidate for candidate in found if candidate.startswith(where.typed))


def _commands(command: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(command, "commands", {})
    return found


def _option(command: Any, name: str) -> Any:
    options = (one for one in command.params if one.param_type_name == "option")
    return next((one for one in options if name in one.opts), None)
