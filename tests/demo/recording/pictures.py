"""``.venv/bin/python -m tests.demo.recording.pictures FILE.cast``: draws the live view as SVG, at two moments.

The moments are the last view while the gate measured, and the last view of all. The pictures are written beside the
cast, as FILE-measuring.svg and FILE-end.svg. They show what the terminal showed, and fetch no fonts.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.demo.recording.cast import Cast
from tests.demo.recording.live_frames import ERASURE, redraws
from tests.demo.show.live_view import HEADING, MARKS
from tests.demo.stage_clock import StageState
from tests.demo.stages import stage

_CURSOR_SHOWN = "\x1b[?25h"
"""The control sequence with which rich ends a live view."""
_FONT_FACE = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""A font that rich's SVG would fetch from another server."""


def views(cast: Cast) -> list[Text]:
    """The live view after each redraw, without the lines printed above it."""
    text = cast.text
    found = []
    for begin, end in redraws(text):
        frame = ERASURE.sub("", text[begin:end]).partition(_CURSOR_SHOWN)[0]
        lines = Text.from_ansi(frame.replace("\r", "")).split("\n")
        headings = [number for number, line in enumerate(lines) if line.plain.startswith(f"{HEADING}, ")]
        if headings:
            found.append(Text("\n").join(lines[headings[-1] :]))
    return found


def measuring(views: Sequence[Text]) -> Text | None:
    """The last view while the gate measured."""
    line = f"{MARKS[StageState.RUNNING][0]} {stage('measure').title}"
    return next((view for view in reversed(views) if line in view.plain), None)


def picture(view: Text, width: int, title: str, name: str) -> str:
    """The view as SVG.

    Args:
        name: tells the picture's style classes from those of other pictures on a page.
    """
    view.rstrip()
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True)
    console.print(view, no_wrap=True, crop=True)
    svg = console.export_svg(title=title, unique_id=name)
    return _FONT_FACE.sub("", svg).replace("Fira Code, monospace", "monospace")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo.recording.pictures", description=(__doc__ or "").replace("``", "")
    )
    parser.add_argument("file", type=Path, help="a cast that tests.demo.recording wrote")
    file = parser.parse_args(arguments).file
    cast = Cast.from_lines(file.read_text())
    shown = views(cast)
    wanted = {"measuring": measuring(shown), "end": shown[-1] if shown else None}
    for name, view in wanted.items():
        if view is None:
            print(f"no picture `{name}`: the recorded demo did not come so far")
            continue
        target = file.with_name(f"{file.stem}-{name}.svg")
        target.write_text(picture(view, cast.width, cast.command, f"{file.stem}-{name}"))
        print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
