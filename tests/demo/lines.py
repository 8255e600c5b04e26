"""Text for one line of output: no control characters, and never longer than a line.

Only the standard library is imported, because start.py runs before the packages are installed.
"""

from __future__ import annotations

MAX_LINE_CHARACTERS = 120
MAX_TEXT_CHARACTERS = 200


def plain_text(value: object, characters: int = MAX_TEXT_CHARACTERS) -> str:
    """Text from outside as one printable line, shortened. Other values than strings give an empty text."""
    if not isinstance(value, str):
        return ""
    line = " ".join("".join(c if c.isprintable() else " " for c in value[: 4 * characters]).split())
    return shorten(line, characters)


def shorten(text: str, characters: int) -> str:
    """The text with at most so many characters, with an ellipsis where it was cut."""
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def timed_line(text: str, seconds: float) -> str:
    """A line that begins with minutes and seconds since the demo began."""
    whole = max(0, int(seconds))
    return shorten(f"[{whole // 60:02d}:{whole % 60:02d}] {plain_text(text)}", MAX_LINE_CHARACTERS)
