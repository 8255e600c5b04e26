"""The simulated draft catches up, and gives requests up, as the worker's does."""

from __future__ import annotations

import itertools

import pytest

from aurora_runtime.engine.arms import OFF, Arm, Source
from aurora_runtime.engine.speculation_settings import PENDING_TOKENS
from aurora_runtime.serving.speculation.outlook import CANNOT_DRAFT, Decision
from aurora_runtime.serving.speculation.worker.policy import FixedArms
from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import DOCSTRINGS, JSON, PROSE, generate
from tests.bench.speculation.regret import ARMS, best_fixed_arm, fixed_arm_speed, new_noise
from tests.bench.speculation.simulator import _DraftBacklog, _Running, against_off, load_in_turn, play, speed

DRAFT = Arm(2, drafts=True)


def decision(arm: Arm, *, explores: bool = False) -> Decision:
    return Decision(arm, (Source.NONE,), explores)


def running(pending: int) -> _Running:
    return _Running("r", generate(PROSE, 1)[0], pending=pending)


def test_a_drafting_round_processes_everything_that_is_pending() -> None:
    one, none, lost = running(7), running(0), running(CANNOT_DRAFT)
    assert _DraftBacklog().catch_up(decision(DRAFT), [one, none, lost]) == 7
    assert [r.pending for r in (one, none, lost)] == [0, 0, CANNOT_DRAFT]


def test_a_full_buffer_is_processed_while_the_draft_is_in_use_and_given_up_otherwise() -> None:
    full, used, unused = PENDING_TOKENS + 1, _DraftBacklog(), _DraftBacklog()
    used.catch_up(decision(DRAFT), [])
    unused.catch_up(decision(DRAFT, explores=True), [])
    kept, lost = running(full), running(full)
    assert used.catch_up(decision(OFF), [kept]) == full
    assert unused.catch_up(decision(OFF), [lost]) == 0
    assert (kept.pending, lost.pending) == (0, CANNOT_DRAFT)
    lost.accept(Source.NONE, OFF)
    kept.accept(Source.NONE, OFF)
    assert (kept.pending, lost.pending) == (1, CANNOT_DRAFT)


@pytest.mark.parametrize("rounds", [None, 50])
@pytest.mark.parametrize("costs", [cpu_milliseconds, gpu_milliseconds])
@pytest.mark.parametrize("concurrency", [1, 5])
def test_the_speed_of_a_fixed_arm_is_that_of_its_rounds(concurrency: int, costs: CostTable, rounds: int | None) -> None:
    traffic = [request for kind in (JSON, DOCSTRINGS, PROSE) for request in generate(kind, 2 * concurrency)]
    best = best_fixed_arm(traffic, concurrency, costs, rounds)
    for arm in ARMS:
        played = play(FixedArms([arm.name]), traffic, concurrency, costs, new_noise())
        all_rounds = list(itertools.islice(played, rounds))
        assert fixed_arm_speed(arm, traffic, concurrency, costs, rounds) == pytest.approx(speed(all_rounds))
        if arm == best.arm:
            assert best.speedup == pytest.approx(against_off(all_rounds))


def test_a_load_changes_how_many_requests_run() -> None:
    traffic, load = generate(DOCSTRINGS, 30), load_in_turn((2, 6, 1), 5)
    rounds = list(play(FixedArms(["off"]), traffic, load, cpu_milliseconds, new_noise()))
    assert [rounds[0].size, {r.size for r in rounds}] == [2, {1, 2, 3, 4, 5, 6}]
    for arm in (OFF, DRAFT, Arm(11, drafts=False)):
        played = list(play(FixedArms([arm.name]), traffic, load, cpu_milliseconds, new_noise()))
        assert fixed_arm_speed(arm, traffic, load, cpu_milliseconds) == pytest.approx(speed(played))
