"""The order of a measurement's batches is fair, whatever the arms and concurrencies."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.evidence_records import Arm
from aurora_runtime.validation.rounds import Batch, batches

DRAFTS = (Arm.ACTIVE, Arm.CANDIDATE)
others = st.sampled_from([(), (Arm.OFF,), (Arm.OFF, Arm.NGRAM)])
concurrencies = st.lists(st.integers(1, 8), min_size=1, max_size=4, unique=True)


def scheduled(
    number: int, other_arms: tuple[Arm, ...], at: list[int], *, prompts: int = 1, available: int = 100
) -> list[Batch[Arm]]:
    return batches(number, DRAFTS, other_arms, at, prompts_per_worker=prompts, available=available)


@given(st.integers(0, 50), others, concurrencies, st.integers(1, 5), st.integers(0, 60))
def test_a_round_treats_all_arms_alike(
    number: int, other_arms: tuple[Arm, ...], at: list[int], prompts: int, spare: int
) -> None:
    available = prompts * max(at) + spare
    turns = scheduled(number, other_arms, at, prompts=prompts, available=available)
    arms = (*DRAFTS, *other_arms)
    assert Counter((t.arm, t.concurrency) for t in turns) == Counter((a, c) for a in arms for c in at)
    for concurrency in at:
        of_concurrency = [t for t in turns if t.concurrency == concurrency]
        assert len({t.prompts for t in of_concurrency}) == 1
        indices = of_concurrency[0].prompts
        assert len(set(indices)) == len(indices) == prompts * concurrency
        assert all(0 <= index < available for index in indices)
        first = turns.index(of_concurrency[0])
        assert turns[first : first + len(arms)] == of_concurrency, "arms of one concurrency follow each other"


@given(others, concurrencies)
def test_at_each_concurrency_either_draft_comes_first_equally_often(other_arms: tuple[Arm, ...], at: list[int]) -> None:
    first: Counter[tuple[int, Arm]] = Counter()
    for number in range(6):
        for concurrency in at:
            turns = scheduled(number, other_arms, at)
            first[concurrency, next(t.arm for t in turns if t.concurrency == concurrency and t.arm in DRAFTS)] += 1
    assert first == Counter({(concurrency, arm): 3 for concurrency in at for arm in DRAFTS})


def test_off_is_first_in_between_and_last_in_turn() -> None:
    places = [[t.arm for t in scheduled(number, (Arm.OFF,), [1])].index(Arm.OFF) for number in range(6)]
    assert places == [0, 1, 2, 0, 1, 2]


@given(others)
def test_between_two_turns_of_the_drafts_no_swap_is_needed(other_arms: tuple[Arm, ...]) -> None:
    turns = [turn for number in range(6) for turn in scheduled(number, other_arms, [1, 4]) if turn.arm in DRAFTS]
    swaps = sum(turn.arm is not before.arm for before, turn in itertools.pairwise(turns))
    assert swaps == 6 * 2, "one within each turn"


def test_rounds_share_no_prompt_when_there_are_enough() -> None:
    used: list[int] = []
    for number in range(4):
        used += {p for t in scheduled(number, (Arm.OFF,), [1, 4], prompts=2, available=40) for p in t.prompts}
    assert len(used) == len(set(used)) == 40
