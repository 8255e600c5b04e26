"""Makes HTML and SVG elements. This module alone turns text into markup.

Why: texts on the page come from the cluster and from the store, where others wrote them.

Invariant: every text and every value of an attribute is escaped, bounded and without control characters. Only
:func:`element` and :func:`style_sheet` make :class:`Markup`, so a text cannot pass for markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from aurora_store.errors import bounded_text

MAX_TEXT_CHARACTERS: Final = 600
_VOID: Final = frozenset({"meta", "line", "rect", "circle", "polygon", "polyline"})
"""Elements that this page never gives any content. Those of SVG are closed, those of HTML have no end tag."""
_SVG_VOID: Final = _VOID - {"meta"}


@dataclass(frozen=True)
class Markup:
    """Markup that is safe to put into a page."""

    html: str


Child: TypeAlias = "Markup | str | int | None"
Attribute: TypeAlias = "str | int | float | bool | Points | None"
Points: TypeAlias = tuple[tuple[float, float], ...]
"""Corners of a line."""


def text(value: object) -> Markup:
    """``value`` as text of a page."""
    return Markup(_escaped(value))


def joined(parts: Iterable[Child]) -> Markup:
    """Parts one after the other. None is left out."""
    return Markup("".join(_html(part) for part in parts))


def element(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """One element with its children.

    Args:
        attributes: ``class_`` and ``for_`` without the last underscore; other underscores become hyphens. None and
            False leave an attribute out, and True gives it no value. Numbers have one decimal place at most.
    """
    head = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID and not children:
        return Markup(f"<{head}/>" if name in _SVG_VOID else f"<{head}>")
    return Markup(f"<{head}>{''.join(_html(child) for child in children)}</{name}>")


def style_sheet(source: str) -> Markup:
    """A style element of the page's own style sheet, which no text of others ever enters."""
    if "<" in source:
        raise ValueError("a style sheet without '<' is expected")
    return Markup(f"<style>{source}</style>")


def _html(child: Child) -> str:
    if child is None:
        return ""
    return child.html if isinstance(child, Markup) else _escaped(child)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{_value(value)}"'


def _value(value: str | float | Points) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number(x)},{number(y)}" for x, y in value)
    return number(value) if isinstance(value, float) else _escaped(value)


def number(value: float) -> str:
    """A coordinate with at most one decimal place."""
    return f"{value:.1f}".removesuffix(".0")


def _escaped(value: object) -> str:
    return html.escape(bounded_text(str(value), MAX_TEXT_CHARACTERS), quote=True)
