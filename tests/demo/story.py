"""Prints what the demo does: one line for each fact, with the minutes and seconds since the demo began."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Story:
    """The lines of one run."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.stage_now = ""
        """The stage that runs or that failed."""

    def say(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(f"[{minutes:02d}:{seconds:02d}] {text}", flush=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Tell when the block begins, and how long it took when it ends well."""
        self.stage_now, began = title, time.monotonic()
        self.say(f"begun: {title}")
        yield
        self.say(f"done: {title}, in {time.monotonic() - began:.0f} s")
