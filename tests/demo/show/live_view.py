"""What the demo draws on a terminal: the stages, the way to the next candidate, and the service's figures.

The view is a pure function of the state. Invariants: no line is wider than the terminal, and no text from outside is
read as markup: all text is given to rich as Text.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tests.demo.show.draft_lines import activity
from tests.demo.show.observation import Observation
from tests.demo.show.show_state import ShowState
from tests.demo.show.sparkline import sparkline
from tests.demo.stage_clock import StageState, StageTime
from tests.demo.stages import duration, stage

MARKS = {
    StageState.WAITING: (" ", "dim"),
    StageState.RUNNING: ("●", "bold cyan"),
    StageState.DONE: ("✓", "green"),
    StageState.FAILED: ("✗", "bold red"),
}
HEADING = "Aurora demo"
LABEL_WIDTH = 18
FIGURE_WIDTH = 26
MEASURED_WIDTH = len("59 min 59 s when measured")
MIN_WIDTH_FOR_MEASURED = 80
"""Columns of a terminal that has room for measured times beside the titles of the stages."""
MIN_CHART_WIDTH, MAX_CHART_WIDTH = 8, 60


def live_view(state: ShowState, now: float, width: int) -> RenderableType:
    """The whole view, for a terminal with `width` columns."""
    parts: list[RenderableType] = [_heading(state, now, width), _stages(state.clock.times, now, width)]
    if state.observation is not None:
        parts += [_line("", width), *_service(state, state.observation, width)]
    return Group(*parts)


def _heading(state: ShowState, now: float, width: int) -> Text:
    return _line(f"{HEADING}, {duration(state.elapsed_seconds(now))}", width, "bold")


def _stages(times: Sequence[StageTime], now: float, width: int) -> Table:
    with_measured = width >= MIN_WIDTH_FOR_MEASURED
    table = _grid()
    table.add_column(width=1)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(width=11, no_wrap=True, justify="right")
    if with_measured:
        table.add_column(width=MEASURED_WIDTH, no_wrap=True, overflow="ellipsis")
    for time in times:
        mark, style = MARKS[time.state]
        elapsed = time.elapsed_seconds(now)
        started = time.state is not StageState.WAITING or elapsed > 0
        cells = [
            Text(mark, style),
            Text(stage(time.key).title, style),
            Text(duration(elapsed) if started else "", style),
        ]
        if with_measured:
            measured = stage(time.key).measured if time.state in (StageState.WAITING, StageState.RUNNING) else None
            cells.append(Text(measured.brief if measured else "", "dim"))
        table.add_row(*cells)
    return table


def _service(state: ShowState, seen: Observation, width: int) -> list[RenderableType]:
    """The way to the next candidate, three sparklines, the present activity and the clients' counts."""
    chart_width = max(MIN_CHART_WIDTH, min(MAX_CHART_WIDTH, width - LABEL_WIDTH - FIGURE_WIDTH - 2))
    table = _grid()
    table.add_column(width=LABEL_WIDTH, no_wrap=True, overflow="ellipsis")
    table.add_column(width=chart_width, no_wrap=True, overflow="crop")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    progress = state.progress_to_candidate
    if progress is not None:
        table.add_row(
            Text("next candidate"),
            ProgressBar(total=1.0, completed=progress, width=chart_width),
            Text(f"{state.learned_tokens:,} of {seen.training.publish_tokens:,} tokens"),
        )
    speeds = [sample.tokens_per_second for sample in state.samples]
    against_off = [sample.against_off for sample in state.samples]
    for label, values, figure in (
        ("acceptance length", [sample.acceptance for sample in state.samples], _figure(seen.acceptance)),
        ("tokens/s", speeds, _figure(speeds[-1] if speeds else None, 1)),
        ("speed against off", against_off, _figure(seen.against_off, 1, "x, engines' estimate")),
    ):
        table.add_row(Text(label), Text(sparkline(values, chart_width), "cyan"), Text(figure))
    traffic = seen.traffic
    counts = f"{traffic.requests} requests, {traffic.failed} failed"
    return [
        table,
        _line(f"{'now':<{LABEL_WIDTH}} {activity(seen)}", width),
        _line(f"{'traffic':<{LABEL_WIDTH}} {counts}", width, "bold red" if traffic.failed else ""),
    ]


def _figure(value: float | None, decimals: int = 2, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{decimals}f}{unit}"


def _grid() -> Table:
    """A table without lines that is exactly as wide as the terminal."""
    return Table.grid(padding=(0, 1), expand=True, pad_edge=False)


def _line(text: str, width: int, style: str = "") -> Text:
    line = Text(text, style, no_wrap=True, overflow="ellipsis")
    line.truncate(max(1, width), overflow="ellipsis")
    return line
