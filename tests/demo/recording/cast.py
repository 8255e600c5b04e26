"""An asciinema cast, version 2: a header and one line for each output, which players of asciinema show.

https://docs.asciinema.org/manual/asciicast/v2/
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from tests.demo.recording.live_frames import TimedText

VERSION = 2
IDLE_SECONDS = 0.5
"""Players shorten every pause to this. The times in the file stay those of the run."""
SAME_TIME_SECONDS = 0.05
"""Output within this time is one event: the terminal hands out a redraw in several pieces."""


@dataclass(frozen=True)
class Cast:
    """The output that a terminal of the given size showed.

    Attributes:
        recorded: when the recording began, in seconds since 1970.
    """

    width: int
    height: int
    command: str
    recorded: int
    outputs: tuple[TimedText, ...]

    @property
    def text(self) -> str:
        """Everything that the terminal got."""
        return "".join(output.text for output in self.outputs)

    def to_lines(self) -> str:
        """The content of the file."""
        header = {
            "version": VERSION,
            "width": self.width,
            "height": self.height,
            "timestamp": self.recorded,
            "idle_time_limit": IDLE_SECONDS,
            "command": self.command,
            "title": self.command,
        }
        events = ([round(output.seconds, 2), "o", output.text] for output in self.outputs)
        return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (header, *events))

    @classmethod
    def from_lines(cls, text: str) -> Cast:
        """Read the content of a file.

        Raises:
            ValueError: It is no cast of version 2.
        """
        header, *events = [json.loads(line) for line in text.split("\n") if line]
        if not isinstance(header, dict) or header.get("version") != VERSION:
            raise ValueError(f"not an asciinema cast of version {VERSION}: its first line is the header")
        outputs = tuple(TimedText(seconds, data) for seconds, kind, data in events if kind == "o")
        return cls(header["width"], header["height"], header["command"], header["timestamp"], outputs)


def joined(lines: Iterable[TimedText]) -> tuple[TimedText, ...]:
    """Lines that came together as one output."""
    outputs: list[TimedText] = []
    for line in lines:
        if outputs and line.seconds - outputs[-1].seconds < SAME_TIME_SECONDS:
            outputs[-1] = TimedText(outputs[-1].seconds, outputs[-1].text + line.text)
        else:
            outputs.append(line)
    return tuple(outputs)
