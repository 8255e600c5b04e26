"""Reading SGLang's command line. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value given for ``flag``, spelt ``--f v`` or ``--f=v``."""
    found = None
    for at, argument in enumerate(arguments):
        if argument == flag and at + 1 < len(arguments):
            found = arguments[at + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    return found
