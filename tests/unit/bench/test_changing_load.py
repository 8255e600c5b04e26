"""The bench states the cost of timing off under a changing load, and plays the pods that it compares."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_runtime.engine.arms import OFF, Arm
from tests.bench.speculation.changing_load import FIRST_SEED, LOADS, PODS, SCENES, Pod
from tests.bench.speculation.regret import BestFixedArm
from tests.bench.speculation.scenarios import CHOOSING_SEEDS, SCORING_SEEDS
from tests.bench.speculation.simulator import PlayedRound

LOOKUP = Arm(3, drafts=False)
FAST = PlayedRound(LOOKUP, False, tokens=8, milliseconds=10.0, off_milliseconds=20.0, size=4)
TIMES_OFF = PlayedRound(OFF, True, tokens=4, milliseconds=10.0, off_milliseconds=10.0, size=4)
CHOSEN_OFF = replace(TIMES_OFF, explores=False)


def test_a_round_that_times_off_loses_what_the_best_arm_would_have_saved() -> None:
    """Only the second half of a pod's rounds counts."""
    pod = Pod([TIMES_OFF] * 4 + [FAST, FAST, CHOSEN_OFF, TIMES_OFF], BestFixedArm(LOOKUP, 0.8, 2.0))
    assert pod.off_share == pytest.approx(1 / 4)
    assert pod.off_loss == pytest.approx(5 / 40)


def test_a_range_of_batch_sizes_lasts_until_another_one_comes() -> None:
    late = [replace(FAST, size=size) for size in (5, 6, 7, 8, 5, 6)]
    pod = Pod([FAST] * 6 + late, BestFixedArm(LOOKUP, 0.8, 2.0))
    assert (pod.ranges, pod.rounds_between_changes) == (2, 2.0)


def test_the_loads_hold_every_concurrency_and_no_seed_of_a_choice_is_used() -> None:
    assert {LOADS["4 to 32"](begun) for begun in range(60)} == {4, 8, 16, 24, 32}
    assert not {*CHOOSING_SEEDS, *SCORING_SEEDS} & {*range(FIRST_SEED, FIRST_SEED + PODS)}
    assert len({scene.name for scene in SCENES}) == len(SCENES)
