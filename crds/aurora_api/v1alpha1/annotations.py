"""The annotations of an AuroraSpeculator with which people decide.

- ``kubectl annotate aspec chat aurora.dev/abort=3`` rejects one version. An old one has no effect on a newer version,
  and any other value is ignored.
- ``kubectl annotate aspec chat aurora.dev/adopt=true`` makes the speculator the successor of a former one.
"""

from __future__ import annotations

from typing import Final

from aurora_api import GROUP

ABORT_ANNOTATION: Final = f"{GROUP}/abort"
"""This version is rejected, and rolled back where it serves."""
ADOPT_ANNOTATION: Final = f"{GROUP}/adopt"
"""With the value "true" the speculator takes over a root that a speculator with another name owns, and children that a
former speculator left."""
MAX_VERSION_DIGITS: Final = 8
"""The store's keys hold a version in eight digits. Python refuses to convert a text of more than 4,300 digits."""
MAX_VERSION: Final = 10**MAX_VERSION_DIGITS - 1


def annotated_version(text: str) -> int | None:
    """The version that an annotation's value names; None when it names none."""
    return int(text) if text.isdecimal() and len(text) <= MAX_VERSION_DIGITS else None
