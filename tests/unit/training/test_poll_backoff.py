"""The pauses of an idle trainer: the shortest one while shards flow, and never longer than the bound."""

from __future__ import annotations

import random
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.observe.observed import TRAINER_SILENCE
from aurora_operator.observe.store.store_access import REST_SECONDS
from aurora_runtime.training.poll_backoff import JITTER_SHARE, PollBackoff
from aurora_runtime.training.settings import DEFAULT_POLICY

SECONDS = st.floats(0.1, 100.0)


@given(
    shortest=SECONDS, longest=SECONDS, hold=st.floats(0.0, 300.0), seed=st.integers(), resets=st.lists(st.booleans())
)
def test_pauses_hold_then_double_up_to_the_bound_and_begin_again_after_a_reset(
    shortest: float, longest: float, hold: float, seed: int, resets: list[bool]
) -> None:
    backoff = PollBackoff(shortest, longest, hold, random.Random(seed).uniform)  # noqa: S311 - jitter
    waited, level = 0.0, shortest
    for reset in [*resets, *[False] * 20]:
        if reset:
            backoff.reset()
            waited, level = 0.0, shortest
        level = min(2 * level, max(shortest, longest)) if waited >= hold else level
        pause = backoff.next_pause()
        assert max(shortest, (1 - JITTER_SHARE) * level) <= pause <= level
        waited += pause


@given(seed=st.integers(), gap=st.floats(0.0, DEFAULT_POLICY.poll_hold_seconds - DEFAULT_POLICY.poll_seconds))
def test_the_default_pauses_are_the_shortest_while_shards_come_within_the_hold(seed: int, gap: float) -> None:
    policy = DEFAULT_POLICY
    backoff = PollBackoff(
        policy.poll_seconds,
        policy.max_poll_seconds,
        policy.poll_hold_seconds,
        random.Random(seed).uniform,  # noqa: S311 - jitter
    )
    waited = 0.0
    while waited < gap:
        pause = backoff.next_pause()
        assert pause == policy.poll_seconds
        waited += pause


def test_after_an_hour_without_traffic_a_pause_is_at_most_thirty_seconds() -> None:
    policy = DEFAULT_POLICY
    backoff = PollBackoff(policy.poll_seconds, policy.max_poll_seconds, policy.poll_hold_seconds, max)
    pauses = [backoff.next_pause() for _ in range(270)]
    assert pauses[:150] == [2.0] * 150, "for five minutes"
    assert pauses[150:] == [4.0, 8.0, 16.0, *[30.0] * 117]


def test_the_operator_never_takes_an_idle_trainer_for_silent() -> None:
    policy = DEFAULT_POLICY
    oldest = policy.idle_status_interval_seconds + policy.max_poll_seconds + 1.2 * REST_SECONDS
    assert timedelta(seconds=oldest) < TRAINER_SILENCE
