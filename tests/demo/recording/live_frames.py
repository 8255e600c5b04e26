"""Finds the redraws of rich's live view in what the demo wrote, and leaves out those that no viewer would miss.

The view is redrawn twice a second, and each redraw has some kilobytes. A redraw begins by erasing the lines of the
redraw before it. The erasures show how many lines the redraw before had. A redraw is left out only if it erased as many
lines as it wrote, and the next one erases as many too: then the next redraw gives the same screen without it. A redraw
that printed lines above the view, or changed its height, is kept.

Only the standard library is imported, so that a demo on a bare machine can be recorded too.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.demo.recording.terminal import Chunk

ERASURE = re.compile(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
"""How rich begins a redraw (LiveRender.position_cursor in rich/live_render.py)."""
_ONE_LINE_UP = "\x1b[1A"
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class TimedText:
    """Text that the terminal got, and when, in seconds since the start."""

    seconds: float
    text: str


@dataclass
class _Output:
    """The whole output as one text, with the time of each character."""

    text: str = ""
    _starts: list[int] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> _Output:
        output, decoder = cls(), codecs.getincrementaldecoder("utf-8")("replace")
        pieces = []
        length = 0
        for chunk in chunks:
            piece = decoder.decode(chunk.data)
            output._starts.append(length)
            output._seconds.append(chunk.seconds)
            pieces.append(piece)
            length += len(piece)
        output.text = "".join(pieces) + decoder.decode(b"", final=True)
        return output

    def seconds(self, position: int) -> float:
        """When the character at `position` came."""
        return self._seconds[bisect_right(self._starts, position) - 1]


def redraws(text: str) -> list[tuple[int, int]]:
    """Where each redraw begins and ends. The first pair is what came before the first redraw."""
    return list(pairwise([0, *(match.start() for match in ERASURE.finditer(text)), len(text)]))


def thinned(chunks: Sequence[Chunk], min_seconds: float) -> list[TimedText]:
    """The lines of the output, with at most one redraw in `min_seconds` beside those that are kept in any case."""
    output = _Output.of(chunks)
    spans = redraws(output.text)
    frames = [output.text[begin:end] for begin, end in spans]
    kept: list[TimedText] = []
    last_seconds = float("-inf")
    for (begin, end), frame, following in zip(spans, frames, [*frames[1:], ""], strict=True):
        if begin == end:
            continue
        seconds = output.seconds(begin)
        if seconds - last_seconds < min_seconds and _is_replaced(frame, following):
            continue
        last_seconds = seconds
        kept += _lines(output, begin, end)
    return kept


def _lines(output: _Output, begin: int, end: int) -> Iterator[TimedText]:
    for line in _LINE.finditer(output.text, begin, end):
        yield TimedText(output.seconds(line.start()), line[0])


def _is_replaced(frame: str, following: str) -> bool:
    """Whether the redraw `following` leaves nothing of the redraw `frame` on the screen."""
    erased = _lines_up(frame)
    return erased is not None and erased == frame.count("\n") == _lines_up(following)


def _lines_up(frame: str) -> int | None:
    """How many lines above its last one a redraw erases. None: the text is no redraw."""
    erasure = ERASURE.match(frame)
    return erasure[0].count(_ONE_LINE_UP) if erasure else None
