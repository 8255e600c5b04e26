"""Finds the metrics and labels that a PromQL expression names. Pure, and only as clever as our expressions need."""

from __future__ import annotations

import re
from typing import Final

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHED_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_CALL_OR_NAME = re.compile(r"([a-zA-Z_:][\w:]*)(\s*\()?")
_OPERATORS: Final = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"})


def named(expression: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names of the series, and the names of the labels."""
    text = _RANGE.sub("", _STRING.sub('""', expression))
    labels = {label for inner in _MATCHERS.findall(text) for label in _MATCHED_LABEL.findall(inner)}
    text = _MATCHERS.sub("", text)
    labels |= {label.strip() for inner in _GROUPING.findall(text) for label in inner.split(",")}
    text = _GROUPING.sub(" ", text)
    words = [(name, bool(call)) for name, call in _CALL_OR_NAME.findall(re.sub(r"\b\d[\w.]*", "", text))]
    series = {name for name, is_call in words if not is_call and name not in _OPERATORS}
    return frozenset(series), frozenset(labels)
