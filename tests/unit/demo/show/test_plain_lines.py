"""The plain lines state one fact each, fit 120 characters, and appear when their fact is new."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given

from tests.demo.handover import Handover
from tests.demo.lines import timed_line
from tests.demo.show.draft_lines import draft_events, figures
from tests.demo.show.observation import observe
from tests.demo.show.show_state import first_state, with_observation
from tests.demo.stage_clock import StageClock
from tests.demo.stage_lines import stage_events, stage_reminders
from tests.unit.demo.show.states import HOSTILE, RESOURCES, resource, state_after, traffic


def test_a_long_stage_says_that_it_began_what_it_takes_how_long_it_runs_and_that_it_ended() -> None:
    clock = StageClock.of(["kubernetes"]).start("kubernetes", 10.0)
    assert stage_events(clock, 10.0, clock, 11.0) == []
    assert stage_events(clock, 11.0, clock, 13.5) == [
        "begun: Kubernetes from source (8 min 59 s when measured on the EPYC with an empty cache)"
    ]
    assert stage_events(clock, 13.5, clock, 14.5) == []
    assert stage_reminders(clock, 69.0, clock, 70.5) == [
        "Kubernetes from source: 1 min so far (8 min 59 s when measured on the EPYC with an empty cache)"
    ]
    assert stage_reminders(clock, 70.5, clock, 100.0) == []
    done = clock.finish("kubernetes", 400.0)
    assert stage_events(clock, 399.0, done, 400.0) == ["done: Kubernetes from source, in 6 min 30 s"]
    failed = clock.fail("kubernetes", 400.0)
    assert stage_events(clock, 399.0, failed, 400.0) == ["failed: Kubernetes from source, after 6 min 30 s"]


def test_a_stage_that_finds_its_result_in_the_cache_prints_nothing() -> None:
    waiting = StageClock.of(["model"])
    running = waiting.start("model", 10.0)
    done = running.finish("model", 11.0)
    assert stage_events(waiting, 9.0, running, 10.0) + stage_events(running, 10.0, done, 11.0) == []


def test_what_happens_to_a_draft_is_told_once() -> None:
    looks = [
        resource(),
        resource(active={"version": 0}),
        resource(active={"version": 0}, candidate={"version": 1, "phase": "Validating", "message": "round 1"}),
        resource(active={"version": 0}, candidate={"version": 1, "phase": "Validating", "message": "round 2"}),
        resource(active={"version": 0}, candidate={"version": 1, "phase": "Rejected", "message": "slower"}),
        resource(active={"version": 0}, rollout={"phase": "Canary", "version": 2, "updated": 1, "total": 2}),
        resource(active={"version": 2}),
    ]
    seen = [None, *(observe(look, traffic()) for look in looks)]
    told = [line for before, after in pairwise(seen) for line in draft_events(before, after)]
    assert told == [
        "version 0 is the active draft",
        "version 1 is Validating",
        "version 1 is Rejected: slower",
        "rollout of version 2: Canary, 1 of 2 pods",
        "version 2 is the active draft",
    ]


def test_a_failed_request_is_told_at_once() -> None:
    before, after = observe(resource(), traffic(requests=7)), observe(resource(), traffic(requests=9, failed=1))
    assert draft_events(before, after) == ["requests failed: 1 of 9"]


def test_figures_are_told_once_a_minute_one_to_a_line() -> None:
    seen = resource(
        active={"version": 0},
        acceptLength="1.41",
        estimatedSpeedup="~1.2x",
        training={"step": 3, "trainedTokens": 2000},
    )
    state = state_after((seen, traffic(60, 2700, 40)))
    assert figures(state, 61.0, state, 119.0) == []
    assert figures(state, 119.0, state, 121.0) == [
        "training: step 3",
        "clients: 45.0 tokens/s, 40 requests",
        "version 0: acceptance length 1.41",
        "the engines estimate 1.2x of the speed without speculation",
        "next candidate: 2,000 of 10,000 tokens learned",
    ]


def test_a_line_is_short_and_has_no_control_characters() -> None:
    line = timed_line(HOSTILE * 20, 754.0)
    assert line.startswith("[12:34] [bold red]a")
    assert len(line) == 120
    assert line.isprintable()


@given(RESOURCES)
def test_every_partial_status_gives_short_printable_lines(seen: dict[str, Any]) -> None:
    before = first_state(Handover(0.0))
    after = with_observation(before, observe(seen, traffic(60, 10)), 60.0)
    for text in [*draft_events(before.observation, after.observation), *figures(before, 59.0, after, 60.0)]:
        line = timed_line(text, 60.0)
        assert len(line) <= 120
        assert line.isprintable()
