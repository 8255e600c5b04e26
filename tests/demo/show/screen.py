"""Shows the state while the demo runs: a live view on a terminal, and plain lines everywhere else.

This is the only part of the show with side effects. A thread ticks once a second, because the demo waits for minutes in
single calls. Invariant: whatever ends the demo, `__exit__` stops the thread and gives the terminal back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from tests.demo.lines import timed_line
from tests.demo.show.draft_lines import draft_events, figures
from tests.demo.show.live_view import live_view
from tests.demo.show.show_state import ShowState
from tests.demo.stage_lines import stage_events, stage_reminders

TICK_SECONDS = 1.0
REFRESHES_PER_SECOND = 2
DUMB_TERMINALS = ("", "dumb", "unknown")


def wants_live_view(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether `stream` is a terminal on which a view can be drawn, and no CI system reads it."""
    draws_blocks = (stream.encoding or "").lower().startswith("utf")
    knows_cursor = environment.get("TERM", "") not in DUMB_TERMINALS
    return stream.isatty() and knows_cursor and draws_blocks and not environment.get("CI")


class Screen:
    """Keeps the newest state and shows it.

    Args:
        live: Draw the live view. Otherwise print plain lines.
    """

    def __init__(self, state: ShowState, stream: TextIO, live: bool) -> None:
        self.state = state
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live = (
            Live(console=self._console, get_renderable=self._view, refresh_per_second=REFRESHES_PER_SECOND)
            if live
            else None
        )
        self._shown, self._shown_at = state, time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="screen", daemon=True)

    def update(self, change: Callable[[ShowState, float], ShowState]) -> None:
        """Change the state by a function of the state and the time, and show what is new."""
        with self._lock:
            self.state = change(self.state, time.monotonic())
            self._show_news()

    def say(self, text: str) -> None:
        """Show one line that is no part of the state."""
        with self._lock:
            self._print(text)

    @contextmanager
    def stage(self, key: str) -> Iterator[None]:
        """Let a stage run for the time of the block. The stage fails if the block ends by an error."""
        self.update(lambda state, now: state.with_clock(state.clock.start(key, now)))
        try:
            yield
        except BaseException:
            self.update(lambda state, now: state.with_clock(state.clock.fail(key, now)))
            raise
        self.update(lambda state, now: state.with_clock(state.clock.finish(key, now)))

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._ended.set()
            self._thread.join()
            if error is not None:
                self.update(lambda state, now: state.with_clock(state.clock.with_failure(now)))
        finally:
            if self._live is not None:
                self._live.stop()

    def _tick(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            with self._lock:
                self._show_news()

    def _show_news(self) -> None:
        """Print the lines that are due since this was last called. The live view shows stages and figures itself."""
        before, before_at, now = self._shown, self._shown_at, time.monotonic()
        lines = draft_events(before.observation, self.state.observation)
        if self._live is None:
            lines += stage_events(before.clock, before_at, self.state.clock, now)
            lines += stage_reminders(before.clock, before_at, self.state.clock, now)
            lines += figures(before, before_at, self.state, now)
        for line in lines:
            self._print(line)
        self._shown, self._shown_at = self.state, now

    def _view(self) -> RenderableType:
        return live_view(self.state, time.monotonic(), self._console.width)

    def _print(self, text: str) -> None:
        line = timed_line(text, self.state.elapsed_seconds(time.monotonic()))
        if self._live is None:
            encoding = self._stream.encoding or "utf-8"
            print(line.encode(encoding, "replace").decode(encoding), file=self._stream, flush=True)
        else:
            self._console.print(Text(line))  # above the view
