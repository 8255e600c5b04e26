"""The trainer's pace: only time in training counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.training.pace import TrainingPace


def observe(pace: TrainingPace, *observations: tuple[float, int, bool]) -> TrainingPace:
    for seconds, step, trains in observations:
        pace.observe(seconds, step, trains=trains, pending_shards=int(trains))
    return pace


def test_steps_are_counted_over_a_minute_of_training_and_waiting_does_not_count() -> None:
    pace = observe(TrainingPace(), (0, 0, True), (30, 20, False), (500, 20, True))
    assert pace.steps_per_minute is None
    observe(pace, (530, 40, True))
    assert pace.steps_per_minute == pytest.approx(40.0)
    observe(pace, (650, 44, True))
    assert pace.steps_per_minute == pytest.approx(2.0)
    assert pace.highest_steps_per_minute == pytest.approx(40.0)


def test_a_trainer_that_went_back_to_an_older_state_makes_no_negative_steps() -> None:
    pace = observe(TrainingPace(), (0, 100, True), (90, 10, True))
    assert pace.steps_per_minute == 0.0


@given(st.lists(st.tuples(st.floats(0, 300), st.integers(0, 50), st.booleans()), min_size=2, max_size=20))
def test_a_pace_is_never_negative_and_the_highest_never_falls(changes: list[tuple[float, int, bool]]) -> None:
    pace, seconds, step, highest = TrainingPace(), 0.0, 0, 0.0
    for passed, steps, trains in changes:
        seconds, step = seconds + passed, step + steps
        pace.observe(seconds, step, trains=trains, pending_shards=1)
        if pace.steps_per_minute is not None:
            assert pace.highest_steps_per_minute is not None
            assert 0 <= pace.steps_per_minute <= pace.highest_steps_per_minute
            assert highest <= pace.highest_steps_per_minute
            highest = pace.highest_steps_per_minute
