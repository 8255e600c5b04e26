"""Thinning leaves out redraws of the live view, and never changes what the terminal shows in the end."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live
from rich.text import Text

from tests.demo.recording.live_frames import TimedText, redraws, thinned
from tests.demo.recording.terminal import Chunk
from tests.example_count import example_count

WIDTH, HEIGHT = 40, 50
_PART = re.compile(r"\x1b\[(\d*)([AKmhl])|\x1b\[\?25[hl]|\r|\n|[^\x1b\r\n]+")


def screen(text: str) -> list[str]:
    """The lines of a terminal without an end, after the control sequences that rich's live view uses."""
    lines, row, column = [""], 0, 0
    for part in _PART.finditer(text):
        count, command = part[1], part[2]
        if part[0] == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part[0] == "\r":
            column = 0
        elif command == "A":
            row -= int(count)
        elif command == "K":
            assert count == "2"
            lines[row] = ""
        elif not part[0].startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part[0] + lines[row][column + len(part[0]) :]
            column += len(part[0])
    return [line.rstrip() for line in lines]


def chunks_of(output: str, seconds_per_chunk: float, random_source: random.Random) -> list[Chunk]:
    """The output as a terminal gives it: with carriage returns, cut anywhere."""
    data = output.replace("\n", "\r\n").encode()
    chunks: list[Chunk] = []
    while data:
        size = random_source.randint(1, 60)
        chunks.append(Chunk(len(chunks) * seconds_per_chunk, data[:size]))
        data = data[size:]
    return chunks


def live_output(steps: Sequence[int | str]) -> str:
    """Output as rich writes it. A number redraws a view of so many lines, and a text is printed above the view."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=WIDTH, height=HEIGHT)
    print("before", file=stream)
    with Live(console=console, auto_refresh=False) as live:
        for number, step in enumerate(steps):
            if isinstance(step, str):
                console.print(step)
            else:
                view = Text("\n".join(f"line {line} ▁▃█ of view {number}" for line in range(step)), "cyan")
                live.update(view, refresh=True)
    print("after", file=stream)
    return stream.getvalue()


STEPS = st.lists(st.integers(1, 4) | st.sampled_from(["printed", "printed too"]), min_size=1, max_size=25)


@settings(max_examples=example_count(40), deadline=None)
@given(STEPS, st.sampled_from([0.0, 0.01, 0.3]), st.randoms(use_true_random=False))
def test_the_screen_at_the_end_is_that_of_the_whole_output(
    steps: list[int | str], seconds_per_chunk: float, random_source: random.Random
) -> None:
    chunks = chunks_of(live_output(steps), seconds_per_chunk, random_source)
    whole = b"".join(chunk.data for chunk in chunks).decode()
    kept = "".join(line.text for line in thinned(chunks, min_seconds=3.0))
    assert screen(kept) == screen(whole)
    assert "".join(line.text for line in thinned(chunks, min_seconds=0.0)) == whole


def test_redraws_between_two_that_are_shown_are_left_out() -> None:
    output = live_output([3] * 100)
    chunks = [Chunk(0.5 * number, output[a:b].encode()) for number, (a, b) in enumerate(redraws(output))]
    kept = thinned(chunks, min_seconds=5.0)
    times = sorted({line.seconds for line in kept})
    assert len(times) == 11
    assert all(later - earlier >= 5.0 for earlier, later in pairwise(times[:-1]))
    assert "view 99" in kept[-2].text


def test_lines_keep_their_own_times_and_a_character_may_come_in_two_pieces() -> None:
    mark = "✓".encode()
    chunks = [Chunk(1.0, b"first\r\nsec"), Chunk(2.0, b"ond " + mark[:1]), Chunk(3.0, mark[1:] + b"\r\nthird")]
    assert thinned(chunks, min_seconds=3.0) == [
        TimedText(1.0, "first\r\n"),
        TimedText(1.0, "second ✓\r\n"),
        TimedText(3.0, "third"),
    ]


def test_no_output_is_no_line() -> None:
    assert thinned([], min_seconds=3.0) == []
