"""Reads a chart's ``values.yaml``: each value with its default and the comment above it. Pure.

A comment belongs to the key below it. A blank line ends a comment that belongs to no key, such as the file's header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

_KEY: Final = re.compile(r"^( *)([A-Za-z]\w*):(?: (.*))?$")


@dataclass(frozen=True)
class Value:
    """One value of the chart, or a section of values."""

    path: str
    comment: str
    default: str | None
    """As JSON. None for a section."""


def read_values(text: str) -> Iterator[Value]:
    """The sections and values of ``text`` in their order. An object that is written on one line is one value."""
    defaults: dict[str, Any] = yaml.safe_load(text)
    comment: list[str] = []
    parents: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        match = _KEY.match(line)
        if match is not None:
            depth = len(match[1]) // 2
            parents[depth:] = [match[2]]
            is_section = not match[3]
            default = None if is_section else json.dumps(_at(defaults, parents), ensure_ascii=False)
            yield Value(".".join(parents), " ".join(comment), default)
        comment = []


def _at(values: Mapping[str, Any], path: list[str]) -> Any:
    found: Any = values
    for name in path:
        found = found[name]
    return found
