"""Which requests are traced, within which budget, and which of those that ended count as traffic of clients.

A conversation is traced whole or not at all, nobody can choose, and a pod keeps to its budget however busy it is.
"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.agent_api import MAX_SQUARE, LiveCounters
from aurora_runtime.conversations import REMEMBERED_BEGINNINGS
from aurora_runtime.held_out_split import is_held_out, prompt_hash, traffic_key
from aurora_runtime.serving.capture.request_filter import (
    MAX_REQUESTS,
    REMEMBERED_REQUESTS,
    SAVED_MINUTES,
    EndedRequests,
    RequestFilter,
    RequestSample,
    TraceAllowance,
    is_sampled,
)

MARKER = (2, 6)
SHARE = 0.25


def share() -> float:
    return SHARE


def turns(number: int, count: int) -> list[list[int]]:
    """The prompts of the turns of a conversation."""
    first = [100 + number, *MARKER]
    return [first + [200, *MARKER] * earlier for earlier in range(count)]


def test_all_turns_of_a_conversation_are_traced_or_none() -> None:
    sample = RequestSample(share, b"key")
    draws = [[sample.has(f"{n}-{i}", turn, MARKER) for i, turn in enumerate(turns(n, 4))] for n in range(1000)]
    assert all(len(set(conversation)) == 1 for conversation in draws)
    assert 0.2 < sum(conversation[0] for conversation in draws) / len(draws) < 0.3


def test_prompts_that_belong_to_no_conversation_are_drawn_one_by_one() -> None:
    sample = RequestSample(share, b"key")
    for prompt, marker in (([1, 2, 3], MARKER), ([100, *MARKER], ()), ([1, 2**40, *MARKER], MARKER)):
        ids = [f"{prompt}-{marker}-{number}" for number in range(400)]
        assert [sample.has(rid, prompt, marker) for rid in ids] == [is_sampled(rid, SHARE, b"key") for rid in ids]


def test_of_many_requests_with_one_beginning_a_share_is_traced() -> None:
    """Drawn by their beginning, all requests of an application would be traced, or none."""
    sample = RequestSample(share, b"key")
    draws = [sample.has(str(number), [100, *MARKER, 300 + number], MARKER) for number in range(3000)]
    assert len(set(draws[:MAX_REQUESTS])) == 1
    assert 0.2 < sum(draws[MAX_REQUESTS:]) / len(draws[MAX_REQUESTS:]) < 0.3


def test_a_request_keeps_its_draw_while_others_share_its_beginning() -> None:
    sample = RequestSample(share, b"key")
    prompts = {str(number): turns(number, 1)[0] for number in range(100)}
    before = {rid: sample.has(rid, prompt, MARKER) for rid, prompt in prompts.items()}
    for number in range(2 * MAX_REQUESTS):
        for first in range(20):
            sample.has(f"other-{first}-{number}", turns(first, 1)[0], MARKER)
    assert {rid: sample.has(rid, prompt, MARKER) for rid, prompt in prompts.items()} == before


def test_whether_a_request_is_traced_says_nothing_about_whether_it_is_held_out() -> None:
    sample = RequestSample(share, b"key")
    traced = [n for n in range(8000) if sample.has(str(n), turns(n, 1)[0], MARKER)]
    held_out = sum(is_held_out(prompt_hash([100 + n], b"key")) for n in traced)
    assert 0.09 < held_out / len(traced) < 0.16


def test_a_prompt_that_is_too_long_for_a_trace_is_not_sampled_and_counts_once() -> None:
    refused = list[str]()
    sample = RequestSample(lambda: 1, max_tokens=4, refused_prompt=lambda: refused.append("one"))
    rounds = [[sample.has(rid, range(tokens), ()) for _ in range(3)] for rid, tokens in (("short", 3), ("long", 4))]
    assert rounds == [[True] * 3, [False] * 3]
    outside = RequestSample(lambda: 0, max_tokens=4, refused_prompt=lambda: refused.append("one"))
    assert not outside.has("long", range(10), ())
    assert len(refused) == 1, "a prompt outside the sample is no loss"


def test_the_memory_of_the_sample_is_bounded() -> None:
    sample = RequestSample(share, b"key")
    for number in range(2 * REMEMBERED_REQUESTS):
        sample.has(str(number), turns(number, 1)[0], MARKER)
    assert (len(sample._draws), len(sample._requests)) == (REMEMBERED_REQUESTS, REMEMBERED_BEGINNINGS)


def test_request_ids_chosen_to_be_traced_are_traced_no_more_often_than_others() -> None:
    """A client computes the draw of an id without the key, and sends only ids that would always be traced."""
    low = 0.05
    chosen = [rid for number in range(60_000) if is_sampled(rid := f"chosen-{number}", low)]
    sampling_params = SimpleNamespace(custom_params=None)
    requests = [
        SimpleNamespace(
            rid=rid,
            origin_input_ids=[1, 2],
            multimodal_inputs=None,
            input_embeds=None,
            beam_group=None,
            sampling_params=sampling_params,
        )
        for rid in chosen
    ]
    keyed = RequestFilter(RequestSample(lambda: low, traffic_key("secret", 1)))
    keyed.probe_captured = True
    traced = keyed.traced(requests)
    assert len(traced) < 0.1 * len(chosen)
    assert traced == keyed.traced(requests), "all batches of a request agree"


def test_the_sample_depends_on_the_share_and_the_request_id_alone() -> None:
    rids = [f"request-{i}" for i in range(4000)]
    kept = [rid for rid in rids if is_sampled(rid, 0.25)]
    assert 850 < len(kept) < 1150
    assert all(is_sampled(rid, 0.5) for rid in kept), "a higher share keeps what a lower one keeps"
    assert all(is_sampled(rid, 1) for rid in rids)
    assert not any(is_sampled(rid, 0) for rid in rids)


# the budget -----------------------------------------------------------------------------------------------------------

BUDGET = 6000
"""Tokens a minute: 100 a second."""


def traced_by_minute(allowance: TraceAllowance, tokens_per_second: int, minutes: int, request: int = 500) -> list[int]:
    """Tokens that are traced in each minute of even traffic of requests with about ``request`` tokens."""
    chance, traced = random.Random(1), list[int]()  # noqa: S311 - no secret
    for _ in range(minutes):
        sum_of_minute = 0
        for _ in range(60):
            offered = 0
            while offered < tokens_per_second:
                length = chance.randint(request // 2, request * 3 // 2)
                offered += length
                if chance.random() < allowance.share:
                    allowance.spend(length)
                    sum_of_minute += length
            allowance.pass_time(1)
        traced.append(sum_of_minute)
    return traced


@pytest.mark.parametrize("load", [3, 30, 300])
def test_busy_traffic_is_traced_at_the_pace_of_the_budget(load: int) -> None:
    traced = traced_by_minute(TraceAllowance(BUDGET), load * BUDGET // 60, 60)
    later = traced[20:]
    assert 0.9 < sum(later) / len(later) / BUDGET < 1.1
    assert sum(traced[:20]) < (20 + SAVED_MINUTES) * BUDGET * 1.1


def test_quiet_traffic_is_traced_almost_whole() -> None:
    offered = 10 * 60  # each request is longer than a second's tokens, so one comes a second
    traced = traced_by_minute(TraceAllowance(BUDGET), 10, 60, request=10)
    assert sum(traced) / 60 > 0.9 * offered


def test_one_request_moves_the_share_by_a_little() -> None:
    """So most later turns of a conversation are traced where the first one was."""
    allowance = TraceAllowance(BUDGET)
    traced_by_minute(allowance, 100 * BUDGET // 60, 30)
    before = allowance.share
    allowance.spend(500)
    assert 0.9 < allowance.share / before < 1


def test_nothing_is_traced_without_a_budget() -> None:
    allowance = TraceAllowance(0)
    allowance.pass_time(3600)
    assert allowance.share == 0


def test_a_first_order_begins_with_what_an_idle_engine_saves() -> None:
    allowance = TraceAllowance(0)
    allowance.order(BUDGET)
    assert allowance.share == 1
    allowance.spend(int(SAVED_MINUTES) * BUDGET)
    assert allowance.share == 0
    allowance.order(BUDGET)
    assert allowance.share == 0, "the same order again gives nothing"


def test_a_smaller_budget_keeps_no_more_than_it_would_have_saved() -> None:
    allowance = TraceAllowance(10 * BUDGET)
    allowance.order(BUDGET)
    allowance.spend(int(SAVED_MINUTES) * BUDGET)
    assert allowance.share == 0


@given(st.integers(1, 10**6), st.lists(st.tuples(st.floats(0, 600), st.integers(0, 10**7)), max_size=30))
def test_the_share_is_a_share_and_no_trace_begins_beyond_the_budget(
    budget: int, steps: list[tuple[float, int]]
) -> None:
    allowance = TraceAllowance(budget)
    begun, last, seconds = 0.0, 0, 0.0
    for passed, tokens in steps:
        allowance.pass_time(passed)
        seconds += passed
        assert 0 <= allowance.share <= 1
        if allowance.share > 0:
            assert begun <= budget * (SAVED_MINUTES + seconds / 60)
            allowance.spend(tokens)
            begun, last = begun + tokens, tokens
    assert begun - last <= budget * (SAVED_MINUTES + seconds / 60)


# requests that ended --------------------------------------------------------------------------------------------------


def request(
    length: int, rounds: int, *, finished: bool = True, cut_at: int | None = None, speculate: bool = True
) -> Any:
    return SimpleNamespace(
        output_ids=[1] * length,
        spec_verify_ct=rounds,
        finished=lambda: finished,
        finished_len=cut_at,
        sampling_params=SimpleNamespace(custom_params=None if speculate else {"aurora": {"speculate": False}}),
    )


def counted(*requests: Any, withdrawn: bool = False) -> LiveCounters:
    ended = EndedRequests(lambda: withdrawn)
    for one in requests:
        ended.add(one)
    return ended.counters()


def test_tokens_and_rounds_of_each_request_are_summed() -> None:
    assert counted(request(11, 4), request(7, 6)) == LiveCounters(
        requests=2, tokens=16, rounds=10, tokens_squared=136, tokens_by_rounds=76, rounds_squared=52
    )


def test_tokens_behind_the_end_of_an_answer_do_not_count() -> None:
    assert counted(request(11, 4, cut_at=9)).tokens == 8


def test_requests_that_say_nothing_about_the_draft_do_not_count() -> None:
    for one in (request(1, 0), request(11, 4, finished=False), request(11, 10, speculate=False)):
        assert counted(one) == LiveCounters()
    assert counted(request(11, 4), withdrawn=True) == LiveCounters(), "of a measurement"


def test_a_retracted_request_counts_once_it_ends() -> None:
    """SGLang keeps its tokens and its rounds."""
    assert counted(request(5, 2, finished=False), request(11, 4)).requests == 1


def test_sums_stay_within_the_limit_of_the_agent_api() -> None:
    assert counted(request(2, 2**30)).rounds_squared == MAX_SQUARE
