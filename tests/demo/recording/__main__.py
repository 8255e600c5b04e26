"""``python3 -m tests.demo.recording FILE.cast``: runs `make demo` in a terminal of its own and records it.

The exit status is that of `make demo`. A demo that failed is recorded too, as FILE.failed.cast beside FILE.cast. So it
never replaces a published recording. masking.py says which paths, names and secrets are masked, and which are not.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.bench_command import new_file
from tests.demo.recording.cast import Cast, joined
from tests.demo.recording.live_frames import TimedText, thinned
from tests.demo.recording.masking import Mask
from tests.demo.recording.terminal import Chunk, run_in_terminal, terminal_environment
from tests.demo.stages import ROOT

COMMAND = ("make", "--no-print-directory", "demo")
TITLE = "make demo"
WIDTH, HEIGHT = 120, 36
"""No line of the live view is wider."""
SECONDS_BETWEEN_REDRAWS = 5.0


def make_cast(chunks: Sequence[Chunk], recorded: int, mask: Mask) -> Cast:
    """The cast of a run, without what would make it large or must not be published."""
    lines = [TimedText(line.seconds, mask.apply(line.text)) for line in thinned(chunks, SECONDS_BETWEEN_REDRAWS)]
    return Cast(WIDTH, HEIGHT, TITLE, recorded, joined(lines))


def main(arguments: Sequence[str] | None = None, command: Sequence[str] = COMMAND) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.demo.recording", description=(__doc__ or "").replace("``", "")
    )
    parser.add_argument("file", type=new_file, help="the cast to write, for example docs/results/demo.cast")
    file: Path = parser.parse_args(arguments).file.absolute()
    os.chdir(ROOT)
    mask = _mask_of_this_machine()
    recorded = int(time.time())
    status, chunks = run_in_terminal(command, WIDTH, HEIGHT, terminal_environment(os.environ), _show)
    if status != 0:
        file = file.with_name(f"{file.stem}.failed.cast")
    file.write_text(make_cast(chunks, recorded, mask).to_lines())
    print(f"recorded {chunks[-1].seconds if chunks else 0.0:.0f} s, exit status {status}: {file}")
    return status


def _mask_of_this_machine() -> Mask:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers run users that have a number and no name
        user = ""
    folders = (Path(os.path.expanduser("~")), Path(tempfile.gettempdir()))  # Path.home() may raise
    return Mask.of_machine(ROOT, folders, user, socket.gethostname(), os.environ)


def _show(data: bytes) -> None:
    """Let a person watch. A log would get megabytes of redraws, and a terminal that is gone must not end the demo."""
    if sys.stdout.isatty():
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), data)


if __name__ == "__main__":
    sys.exit(main())
