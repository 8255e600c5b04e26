"""The live view fits every terminal, shows what is known, and reads no text from outside as markup."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from tests.demo.handover import Handover
from tests.demo.show.live_view import live_view
from tests.demo.show.observation import observe
from tests.demo.show.show_state import ShowState, first_state, with_loop_done, with_observation
from tests.demo.show.sparkline import BLOCKS, sparkline
from tests.demo.stages import STAGES
from tests.unit.demo.show.states import RESOURCES, long_state, resource, state_after, traffic


def drawn(state: ShowState, width: int, now: float = 1000.0) -> list[str]:
    console = Console(
        record=True, width=width, height=50, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(live_view(state, now, width))
    return console.export_text(clear=True).splitlines()


@pytest.mark.parametrize("width", [30, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_even_with_long_texts_from_outside(width: int) -> None:
    lines = drawn(long_state(minutes=90), width)
    assert max(cell_len(line.rstrip()) for line in lines) <= width
    assert len(lines) == len(drawn(long_state(minutes=1), width)), "no line may wrap"


@pytest.mark.parametrize("width", [80, 120])
def test_text_from_outside_is_shown_as_it_is(width: int) -> None:
    text = "\n".join(drawn(long_state(minutes=3), width))
    assert "[bold red]a[/bold red]" in text
    assert not any(character in text for character in "\x1b\r\x07")


@given(seen=RESOURCES, width=st.integers(20, 160))
def test_every_partial_status_can_be_drawn(seen: dict[str, Any], width: int) -> None:
    lines = drawn(state_after((seen, traffic(60, 100))), width)
    assert max(cell_len(line.rstrip()) for line in lines) <= width


def test_the_view_shows_stages_progress_and_figures() -> None:
    looks = [
        (
            resource(
                active={"version": 0},
                acceptLength=f"1.{m}",
                estimatedSpeedup="~1.3x",
                training={"step": 7, "trainedTokens": 620 * m},
            ),
            traffic(60.0 * m, 2700 * m, 40 * m),
        )
        for m in range(1, 5)
    ]
    lines = drawn(state_after(*looks), width=100, now=300.0)
    (packages,) = (line for line in lines if "Python packages" in line)
    assert packages.split()[0] == "✓"
    assert "1 min 2 s" in packages
    (learning,) = (line for line in lines if "the draft learns from traffic" in line)
    assert learning.split()[0] == "●"
    assert "4 min" in learning, "from the first look at 60 s until 300 s"
    figures = {line.split("  ")[0]: line for line in lines}
    assert "2,480 of 10,000 tokens" in figures["next candidate"]
    assert figures["acceptance length"].split()[-2:] == ["▁▃▆█", "1.40"]
    assert figures["tokens/s"].split()[-1] == "45.0"
    assert "1.3x, engines' estimate" in figures["speed against off"]
    assert "training: step 7" in figures["now"]
    assert "160 requests, 0 failed" in figures["traffic"]


def test_before_anything_is_known_the_view_names_measured_times_of_what_is_to_come() -> None:
    lines = drawn(first_state(Handover(0.0)), width=100)
    (kubernetes,) = (line for line in lines if "Kubernetes from source" in line)
    assert "8 min 59 s when measured" in kubernetes
    assert not any("Python packages" in line for line in lines), "without start.py nobody installed packages"


@pytest.mark.parametrize("width", [60, 79, 80, 81])
def test_the_titles_of_all_stages_are_whole(width: int) -> None:
    text = "\n".join(drawn(first_state(Handover(0.0, packages_seconds=62.0)), width))
    assert all(one.title in text for one in STAGES if one.key != "bootstrap"), "start.py shows that stage"
    assert ("when measured" in text) == (width >= 80)


def test_a_rejected_candidate_sends_the_show_back_to_learning_and_the_bar_to_its_start() -> None:
    def look(trained: int, phase: str = "", version: int = 1) -> dict[str, Any]:
        candidate = {"version": version, "phase": phase} if phase else None
        return resource(active={"version": 0}, training={"trainedTokens": trained}, candidate=candidate)

    state = first_state(Handover(0.0))
    shares, stages = [], []
    for minute, seen in enumerate(
        [look(5_000), look(10_500, "Validating"), look(12_000, "Rejected"), look(14_500, "Rejected")]
    ):
        state = with_observation(state, observe(seen, traffic()), 60.0 * minute)
        shares.append(state.progress_to_candidate)
        stages.append([key for key in state.clock.running if key in ("learn", "measure", "roll")])
    assert shares == [0.5, 0.0, 0.15, 0.4]
    assert stages == [["learn"], ["measure"], ["learn"], ["learn"]]
    assert state.clock["measure"].elapsed_seconds(240.0) == 60.0


def test_a_candidate_that_passed_is_on_its_way_to_the_pods_before_its_roll_begins() -> None:
    passed = resource(active={"version": 0}, candidate={"version": 1, "phase": "Validated"}, rollout={"phase": "Idle"})
    state = state_after((passed, traffic()))
    assert state.clock.running == ("roll",)
    done = with_loop_done(state, 200.0)
    assert not done.clock.running


NUMBERS = st.lists(st.none() | st.floats(-1e9, 1e9), max_size=50)


@given(NUMBERS, st.integers(50, 60))
def test_a_sparkline_with_room_keeps_the_order_of_its_values(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    assert [block == " " for block in line] == [value is None for value in values]
    known = sorted((value, BLOCKS.index(block)) for value, block in zip(values, line, strict=True) if value is not None)
    assert all(first[1] <= second[1] for first, second in pairwise(known))
    if known and known[0][0] < known[-1][0]:
        assert (known[0][1], known[-1][1]) == (0, len(BLOCKS) - 1)


@given(NUMBERS, st.integers(0, 40))
def test_a_sparkline_never_takes_more_than_its_width(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


def test_a_long_run_is_shown_from_its_beginning() -> None:
    assert sparkline([float(number // 20) for number in range(160)], 8) == BLOCKS
