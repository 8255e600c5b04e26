"""Annotations of an AuroraSpeculator with which people decide: ``kubectl annotate aspec chat aurora.dev/abort=3``.

Invariant: each annotation names one version, so an old one has no effect on a newer version. That of a
measurement names the attempt too, so it asks for one measurement and not for one after the other. Any other value is
ignored.
"""

from __future__ import annotations

from typing import Final

from aurora_api import GROUP

ABORT_ANNOTATION: Final = f"{GROUP}/abort"
"""This version is rejected, and rolled back where it serves."""
MEASURE_ANNOTATION: Final = f"{GROUP}/measure"
"""``<version>-<attempt>``: this attempt at measuring the version does not wait for the delay after the failed one."""
MAX_VERSION_DIGITS: Final = 8
"""The store's keys hold a version in eight digits. Python refuses to convert a text of more than 4,300 digits."""
MAX_VERSION: Final = 10**MAX_VERSION_DIGITS - 1


def annotated_version(text: str) -> int | None:
    """The version that an annotation's value names; None when it names none."""
    return int(text) if text.isdecimal() and len(text) <= MAX_VERSION_DIGITS else None


def annotated_pair(text: str) -> tuple[int, int] | None:
    """The numbers that the value of :data:`MEASURE_ANNOTATION` names.

    None when ``text`` names no two numbers.
    """
    first, second = (annotated_version(part) for part in text.partition("-")[::2])
    return None if first is None or second is None else (first, second)


def pair_text(version: int, number: int) -> str:
    """The value that :func:`annotated_pair` reads."""
    return f"{version}-{number}"
