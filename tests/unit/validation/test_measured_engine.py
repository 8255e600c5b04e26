"""What a draft answers before it is measured: how much at most, in which order, and when the warm-up ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aurora_runtime.validation.engines.warm_up import DRAFT_PROMPTS, DRAFT_TOKENS, ENGINE_TOKENS, WarmUp
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_runtime.validation.load_client import Answer, BatchResult


@dataclass
class Client:
    """Answers each request with a given number of tokens, if the request allows as many. None fails."""

    lengths: Sequence[int | None] = (8192,)
    """The lengths of the answers, over and over."""
    asked: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    """Each request's prompt, and the tokens that it allows."""
    answered: int = 0

    async def batch(self, prompts: Sequence[tuple[int, ...]], concurrency: int, max_new_tokens: int) -> BatchResult:
        assert concurrency == len(prompts) == 1
        length = self.lengths[len(self.asked) % len(self.lengths)]
        self.asked.append((prompts[0], max_new_tokens))
        if length is None:
            return BatchResult((None,), 1.0, unreached=1)
        length = min(length, max_new_tokens)
        self.answered += length
        return BatchResult((Answer((1,) * length, None),), 1.0)


async def learn(warm_up: WarmUp, client: Any, *, requests: int = 10**6) -> BatchResult:
    """Warm a draft up. Time is over after ``requests``."""
    return await warm_up.learn_draft(client, lambda: len(client.asked) < requests)


@given(
    st.integers(1, 40),
    st.integers(1, 8192),
    st.lists(st.one_of(st.none(), st.integers(0, 300)), min_size=1, max_size=20),
    st.integers(0, 20),
)
async def test_a_warm_up_is_bounded_and_ends_for_a_reason(
    prompts: int, max_new_tokens: int, lengths: list[int | None], requests: int
) -> None:
    texts = [(number,) for number in range(prompts)]
    client = Client(lengths)
    result = await learn(WarmUp.of(texts, DraftSpec(), max_new_tokens), client, requests=requests)
    count = len(client.asked)
    assert [prompt for prompt, _ in client.asked] == texts[::-1][:count], "the oldest first"
    assert all(1 <= tokens <= max_new_tokens for _, tokens in client.asked)
    assert count <= DRAFT_PROMPTS
    assert result.tokens == client.answered <= DRAFT_TOKENS
    assert result.failures == result.unreached <= 1
    assert None not in result.answers[:-1], "no request follows a failed one"
    assert len(result.answers) == count
    ends = (count == min(prompts, DRAFT_PROMPTS), client.answered == DRAFT_TOKENS, result.failures, count == requests)
    assert any(ends)


async def test_answers_that_end_early_lead_to_further_prompts() -> None:
    texts = [(number,) for number in range(40)]
    client = Client([100, 3])
    await learn(WarmUp.of(texts, DraftSpec(), 128), client)
    assert [tokens for _, tokens in client.asked] == [128, 128, 128, 53, 50]
    silent = Client([0])
    await learn(WarmUp.of(texts, DraftSpec(), 128), silent)
    assert len(silent.asked) == DRAFT_PROMPTS


async def test_a_draft_of_fixed_shape_has_no_controller_that_must_get_to_know_it() -> None:
    client = Client()
    await learn(WarmUp.of([(1,), (2,)], DraftSpec(shape=Shape.FIXED), 64), client)
    assert client.asked == [((2,), ENGINE_TOKENS)]


def test_the_declared_concurrencies_above_one_are_warmed_up() -> None:
    for shape in (Shape.ADAPTIVE, Shape.FIXED):
        warm_up = WarmUp.of([(1,), (2,)], DraftSpec(shape=shape), 64, (1, 4, 12))
        assert warm_up.concurrencies == (4, 12), "an answer of its own warms concurrency 1 up"
