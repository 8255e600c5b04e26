"""Which requests of SGLang's scheduler count as traffic of clients, and what is counted of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from aurora_protocol.agent_api import MAX_SQUARE, LiveCounters
from aurora_runtime.serving.capture.request_filter import EndedRequests


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
