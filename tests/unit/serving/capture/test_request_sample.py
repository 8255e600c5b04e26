"""Which requests are traced: whole conversations, and nobody can choose."""

from __future__ import annotations

from types import SimpleNamespace

from aurora_runtime.conversations import REMEMBERED_BEGINNINGS
from aurora_runtime.held_out_split import is_held_out, prompt_hash, traffic_key
from aurora_runtime.serving.capture.request_filter import (
    MAX_REQUESTS,
    REMEMBERED_REQUESTS,
    RequestFilter,
    RequestSample,
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
    assert len(refused) == 1


def test_a_long_prompt_outside_the_sample_is_no_loss() -> None:
    refused = list[str]()
    sample = RequestSample(lambda: 0, max_tokens=4, refused_prompt=lambda: refused.append("one"))
    assert not sample.has("long", range(10), ())
    assert refused == []


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
