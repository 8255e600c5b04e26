"""The order of a measurement's batches is fair, whatever the arms and concurrencies."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.evidence_records import Arm
from aurora_runtime.validation.rounds.round_schedule import batches

ARMS = (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.NGRAM)
arms = st.sampled_from([ARMS[1:3], ARMS[:3], ARMS])
concurrencies = st.lists(st.integers(1, 8), min_size=1, max_size=4, unique=True)


@given(st.integers(0, 50), arms, concurrencies, st.integers(1, 5), st.integers(0, 60))
def test_a_round_treats_all_arms_alike(
    number: int, arms: tuple[Arm, ...], concurrencies: list[int], prompts_per_worker: int, spare: int
) -> None:
    available = prompts_per_worker * max(concurrencies) + spare
    turns = batches(number, arms, concurrencies, prompts_per_worker=prompts_per_worker, available=available)
    assert Counter((t.arm, t.concurrency) for t in turns) == Counter((a, c) for a in arms for c in concurrencies)
    for concurrency in concurrencies:
        of_concurrency = [t for t in turns if t.concurrency == concurrency]
        assert len({t.prompts for t in of_concurrency}) == 1
        prompts = of_concurrency[0].prompts
        assert len(set(prompts)) == len(prompts) == prompts_per_worker * concurrency
        assert all(0 <= p < available for p in prompts)
        first = turns.index(of_concurrency[0])
        assert turns[first : first + len(arms)] == of_concurrency, "arms of one concurrency follow each other"


@given(arms, concurrencies)
def test_at_each_concurrency_every_arm_is_first_equally_often(arms: tuple[Arm, ...], concurrencies: list[int]) -> None:
    first: Counter[tuple[int, Arm]] = Counter()
    for number in range(2 * len(arms)):
        turns = batches(number, arms, concurrencies, prompts_per_worker=1, available=100)
        for concurrency in concurrencies:
            first[concurrency, next(t.arm for t in turns if t.concurrency == concurrency)] += 1
    assert first == Counter({(concurrency, arm): 2 for concurrency in concurrencies for arm in arms})


def test_between_two_turns_of_the_drafts_no_swap_is_needed() -> None:
    drafts = ARMS[1:3]
    turns = [
        turn for number in range(6) for turn in batches(number, drafts, [1, 4], prompts_per_worker=1, available=100)
    ]
    swaps = sum(turn.arm is not before.arm for before, turn in itertools.pairwise(turns))
    assert swaps == 6 * 2, "one within each turn"


def test_rounds_share_no_prompt_when_there_are_enough() -> None:
    used: list[int] = []
    for number in range(4):
        turns = batches(number, ARMS, [1, 4], prompts_per_worker=2, available=40)
        used += {p for t in turns for p in t.prompts}
    assert len(used) == len(set(used)) == 40
