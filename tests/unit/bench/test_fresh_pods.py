"""Windows of a fresh pod's rounds are counted wherever they begin, and pods only once."""

from __future__ import annotations

import pytest

from aurora_runtime.engine.arms import OFF
from tests.bench.speculation import fresh_pods
from tests.bench.speculation.fresh_pods import FIRST_SEED, PODS, SCENES, FreshPod, cells
from tests.bench.speculation.scenarios import CHOOSING_SEEDS, SCORING_SEEDS
from tests.bench.speculation.simulator import PlayedRound, against_off, windows_against_off, worst_window


def rounds(*milliseconds: float) -> list[PlayedRound]:
    """Rounds that off would have made in one millisecond each."""
    return [PlayedRound(OFF, False, tokens=1, milliseconds=each, off_milliseconds=1.0) for each in milliseconds]


def test_a_window_begins_at_every_round() -> None:
    played = rounds(1.0, 3.0, 1.0, 0.5)
    assert list(windows_against_off(played, 2)) == pytest.approx([0.5, 0.5, 4 / 3])
    assert worst_window(played, 2) == pytest.approx(0.5)
    assert list(windows_against_off(played, 4)) == pytest.approx([against_off(played)])


def test_a_run_that_is_shorter_than_a_window_has_none() -> None:
    assert list(windows_against_off(rounds(5.0), 2)) == []
    assert worst_window(rounds(5.0), 2) == float("inf")


def test_a_pod_with_several_windows_below_the_bound_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh_pods, "WINDOW_ROUNDS", 2)
    slow, fast = FreshPod.of(7, rounds(1.0, 1.2, 1.0, 0.5)), FreshPod.of(8, rounds(1.0, 1.0, 1.0))
    assert (slow.windows_below, fast.windows_below) == (2, 0)
    assert slow.lowest == pytest.approx(1 / 1.1)
    assert cells("scene", [slow, fast]) == ["scene", 2, "1.041", "0.909", 1, "2 of 5 (40.00%)"]


def test_a_pod_plays_equal_rounds_for_equal_seeds_only_and_no_seed_of_a_choice() -> None:
    assert not {*CHOOSING_SEEDS, *SCORING_SEEDS} & {*range(FIRST_SEED, FIRST_SEED + PODS)}
    scene = next(one for one in SCENES if one.concurrency == 1)
    assert list(scene.play(1)) == list(scene.play(1)) != list(scene.play(2))
