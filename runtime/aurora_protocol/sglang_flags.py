"""The options that SGLang's server knows, so that a wrong argument is reported before a pod fails to start.

The operator cannot import SGLang, so it reads a list that lies beside this module, and builds a parser from it.
``python -m aurora_runtime.engine.list_sglang_flags`` writes the list from the parser of the locked version.

Invariant: no message holds a value, because a value may be a secret.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Final, NoReturn

from pydantic import Field

from aurora_api.base import Model

FILE_NAME: Final = "sglang_flags.json"


class Values(StrEnum):
    """How many values an option takes."""

    NONE = "none"
    ONE = "one"
    OPTIONAL = "optional"
    ANY = "any"
    SOME = "some"


class ValueType(StrEnum):
    """What a value must be."""

    INTEGER = "integer"
    NUMBER = "number"
    JSON = "json"
    TEXT = "text"


class Option(Model):
    """One option of ``sglang serve``."""

    flags: tuple[str, ...] = Field(description="All spellings, such as `--tp-size` and `--tp`.")
    values: Values = Values.ONE
    type: ValueType = ValueType.TEXT
    choices: tuple[str | int, ...] = Field(default=(), description="All valid values; empty where any may be valid.")

    @property
    def expectation(self) -> str:
        """What the option needs, for a message."""
        if self.values is Values.NONE:
            return "takes no value"
        if self.choices:
            return f"needs one of {', '.join(map(str, self.choices))}"
        return f"needs {_NOUNS[self.type]}"


class OptionList(Model):
    """The content of the list."""

    sglang: str = Field(description="Version of SGLang.")
    options: tuple[Option, ...]


_NOUNS: Final = {
    ValueType.INTEGER: "an integer",
    ValueType.NUMBER: "a number",
    ValueType.JSON: "a value in JSON",
    ValueType.TEXT: "a value",
}
_READERS: Final[dict[ValueType, Callable[[str], Any]]] = {
    ValueType.INTEGER: int,
    ValueType.NUMBER: float,
    ValueType.JSON: json.loads,
    ValueType.TEXT: str,
}
_COUNTS: Final = {Values.ONE: None, Values.OPTIONAL: "?", Values.ANY: "*", Values.SOME: "+"}


@cache
def known_options() -> OptionList:
    """The options of the locked version."""
    return OptionList.model_validate_json(files("aurora_protocol").joinpath(FILE_NAME).read_bytes())


class _Parser(argparse.ArgumentParser):
    """A parser that neither prints nor exits."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


@cache
def _parser() -> _Parser:
    parser = _Parser(add_help=False, exit_on_error=False)
    for option in known_options().options:
        for flag in option.flags:
            if option.values is Values.NONE:
                parser.add_argument(flag, action="store_true")
            else:
                reader, choices = _READERS[option.type], option.choices or None
                parser.add_argument(flag, nargs=_COUNTS[option.values], type=reader, choices=choices)
    return parser


def argument_faults(arguments: Sequence[str]) -> list[str]:
    """What SGLang would say against ``arguments``; empty when it would take them."""
    return list(_faults(tuple(arguments)))


@lru_cache(maxsize=64)  # each reconcile asks several times, and a parse takes 0.4 ms
def _faults(arguments: tuple[str, ...]) -> list[str]:
    options = {flag: option for option in known_options().options for flag in option.flags}
    flags = [argument.split("=", 1)[0] for argument in arguments if argument.startswith("--")]
    unknown = [flag for flag in flags if not any(known.startswith(flag) for known in options)]
    if unknown:
        return [f"SGLang has no flag {', '.join(unknown)}"]
    try:
        _, left = _parser().parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        if error.argument_name is None:
            ambiguous = [flag for flag in flags if flag not in options and _count(flag, options) > 1]
            return [f"{', '.join(ambiguous)} is the beginning of several flags"]
        return [f"{error.argument_name} {options[error.argument_name].expectation}"]
    return [f"{len(left)} of the arguments belong to no flag"] if left else []


def _count(flag: str, options: dict[str, Option]) -> int:
    return sum(known.startswith(flag) for known in options)
