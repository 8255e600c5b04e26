"""The flags that SGLang's server knows, so that a misspelt flag is reported before a pod fails to start.

The operator cannot import SGLang, so it reads a list that lies beside this module.
``python -m aurora_runtime.engine.list_sglang_flags`` writes the list from the parser of the pinned version.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

FILE_NAME = "sglang_flags.txt"


@cache
def known_flags() -> frozenset[str]:
    """The long flags of ``sglang serve``, such as ``--tp-size``."""
    lines = files("aurora_protocol").joinpath(FILE_NAME).read_text().splitlines()
    return frozenset(line for line in lines if line.startswith("--"))


def unknown_flags(arguments: Iterable[str]) -> list[str]:
    """The flags among ``arguments`` that SGLang does not know. An abbreviation of a known flag counts as known."""
    flags = [argument.split("=", 1)[0] for argument in arguments if argument.startswith("--")]
    return [flag for flag in flags if not any(known.startswith(flag) for known in known_flags())]
