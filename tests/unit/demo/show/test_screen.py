"""The screen prints what is new, marks the stage in which an error happened, and gives the terminal back."""

from __future__ import annotations

import io

import pytest

from tests.demo.handover import Handover
from tests.demo.show.observation import observe
from tests.demo.show.screen import Screen, wants_live_view
from tests.demo.show.show_state import first_state, with_observation
from tests.unit.demo.show.states import HOSTILE, resource, traffic


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def screen(stream: io.StringIO, live: bool) -> Screen:
    return Screen(first_state(Handover(0.0)), stream, live)


@pytest.mark.parametrize(
    ("stream", "environment", "live"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "CI": "true"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_the_live_view_is_for_terminals_that_a_person_reads(
    stream: io.StringIO, environment: dict[str, str], live: bool
) -> None:
    assert wants_live_view(stream, environment) is live


@pytest.mark.parametrize("live", [True, False])
def test_an_error_marks_its_stage_and_no_other(live: bool) -> None:
    shown = screen(Terminal(), live)

    def run() -> None:
        with shown:
            shown.update(lambda state, now: state.with_clock(state.clock.start("model", now)))
            with shown.stage("cluster"):
                raise RuntimeError("no cluster")

    with pytest.raises(RuntimeError, match="no cluster"):
        run()
    assert shown.state.clock.failed == "cluster"
    assert not shown.state.clock.running


def test_plain_lines_name_what_happens_to_drafts_without_control_characters() -> None:
    stream = io.StringIO()
    seen = observe(resource(active={"version": 0}, candidate={"version": 1, "phase": "Failed", "message": HOSTILE * 9}))
    with screen(stream, live=False) as shown:
        shown.update(lambda state, now: with_observation(state, seen, now))
        shown.say("created the speculator")
    lines = [line.split("] ", 1)[1] for line in stream.getvalue().splitlines()]
    assert lines[0] == "version 0 is the active draft"
    assert lines[1].startswith("version 1 is Failed: [bold red]a")
    assert lines[-1] == "created the speculator"
    assert all(len(line) <= 120 and line.isprintable() for line in stream.getvalue().splitlines())


def test_plain_lines_reach_a_stream_that_cannot_encode_them() -> None:
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding="ascii") as stream:
        with Screen(first_state(Handover(0.0)), stream, live=False) as shown:
            shown.say("a long line " * 20)
        assert written.getvalue().rstrip().endswith(b"?")


def test_the_live_view_is_drawn_and_its_cursor_comes_back_after_an_error() -> None:
    stream = Terminal()
    shown = screen(stream, live=True)

    def run() -> None:
        with shown, shown.stage("install"):
            shown.say("[bold]no markup[/bold]")
            raise TimeoutError("helm")

    with pytest.raises(TimeoutError):
        run()
    drawn = stream.getvalue()
    assert "operator and store" in drawn
    assert "[bold]no markup[/bold]" in drawn
    hidden, visible = drawn.rfind("\x1b[?25l"), drawn.rfind("\x1b[?25h")
    assert visible > hidden >= 0


def test_a_failure_during_traffic_is_of_the_stage_that_the_draft_is_in() -> None:
    shown = screen(io.StringIO(), live=False)
    seen = observe(resource(active={"version": 0}, candidate={"version": 1, "phase": "Validating"}), traffic())

    def run() -> None:
        with shown:
            shown.update(lambda state, now: with_observation(state, seen, now))
            raise RuntimeError("the API server is away")

    with pytest.raises(RuntimeError):
        run()
    assert shown.state.clock.failed == "measure"
