"""What the measured engine answers: which draft it holds, how each arm is warmed up, and what each request asks for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.evidence_records import Arm
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.measured_engine import (
    DRAFT_PROMPTS,
    DRAFT_TOKENS,
    ENGINE_TOKENS,
    LOOKUP_TOKENS,
    Answer,
    BatchResult,
    LoadClient,
    MeasuredEngine,
)


@dataclass
class ScriptedHost:
    """Stands in for the engine and who swaps it. Notes every call."""

    lengths: Sequence[int | None] = (8192,)
    """The lengths of the answers of batches, over and over. None fails."""
    dead: bool = False
    """Whether a failed request means that the engine died."""
    calls: list[str] = field(default_factory=list)
    prompts: list[Sequence[tuple[int, ...]]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """The most tokens of each batch."""
    wishes: list[Mapping[str, Any]] = field(default_factory=list)
    held: Arm = Arm.ACTIVE
    arm: Arm = Arm.OFF

    async def hold(self, arm: Arm) -> bool:
        swaps = arm is not Arm.OFF and arm is not self.held
        self.held = arm if swaps else self.held
        self.calls.append(f"holds {self.held}")
        return swaps

    async def confirm(self, arm: Arm, result: BatchResult) -> None:
        if self.dead and result.failures:
            raise MeasurementError(f"the engine died on {arm}")

    def client(self, arm: Arm, wish: Mapping[str, Any], deadline: float) -> LoadClient:
        assert deadline < time.monotonic() + 3600, "batches end with the measurement"
        assert (wish.get("speculate") is False) == (arm is Arm.OFF)
        self.arm = arm
        self.wishes.append(wish)
        return cast(LoadClient, self)

    async def batch(self, prompts: Sequence[tuple[int, ...]], concurrency: int, max_new_tokens: int) -> BatchResult:
        assert concurrency == len(prompts) or max_new_tokens == LOOKUP_TOKENS
        length = self.lengths[len(self.prompts) % len(self.lengths)]
        self.prompts.append(prompts)
        self.tokens.append(max_new_tokens)
        self.calls.append(f"{self.arm} answers {max_new_tokens}" + (f" {concurrency} times" if concurrency > 1 else ""))
        answer = None if length is None else Answer((1,) * min(length, max_new_tokens), 1)
        return BatchResult((answer,) * concurrency, 1.0)


def measured(
    host: ScriptedHost, *, seconds: float = 60.0, concurrencies: tuple[int, ...] = (1,), prompts: int = 4, **more: Any
) -> MeasuredEngine:
    texts = [(number,) for number in range(prompts)]
    options = {"max_new_tokens": 100, "deadline": time.monotonic() + seconds} | more
    return MeasuredEngine(host, texts, concurrencies, **options)


LEARNS = ("answers 100", "answers 100", "answers 56")


def learns(arm: Arm) -> list[str]:
    return [f"{arm} {call}" for call in LEARNS]


async def test_a_draft_is_warmed_up_at_length_when_it_is_new_and_shortly_after_each_further_swap() -> None:
    host = ScriptedHost()
    engine = measured(host)
    for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.CANDIDATE, Arm.ACTIVE, Arm.OFF):
        await engine.prepare(arm)
    assert host.calls == [
        *("holds active", "off answers 24", "holds active"),
        *("holds active", *learns(Arm.ACTIVE), "holds active"),
        *("holds candidate", *learns(Arm.CANDIDATE), "holds candidate"),
        "holds candidate",
        *("holds active", "active answers 8", "holds active"),
        "holds active",
    ]


async def test_every_arm_answers_a_batch_at_every_concurrency_before_it_is_measured() -> None:
    """Otherwise the first draft would pay for what the controller has to learn about each batch size."""
    host = ScriptedHost()
    engine = measured(host, concurrencies=(1, 4, 8))
    for arm in (Arm.OFF, Arm.CANDIDATE, Arm.ACTIVE, Arm.CANDIDATE):
        await engine.prepare(arm)
    answers = [call for call in host.calls if "answers" in call]
    assert answers == [
        *("off answers 24", "off answers 24 4 times", "off answers 24 8 times"),
        *(*learns(Arm.CANDIDATE), "candidate answers 24 4 times", "candidate answers 24 8 times"),
        *(*learns(Arm.ACTIVE), "active answers 24 4 times", "active answers 24 8 times"),
        "candidate answers 8",
    ]


@given(
    st.integers(1, 40),
    st.integers(1, 8192),
    st.lists(st.one_of(st.none(), st.integers(1, 300)), min_size=1, max_size=20),
)
async def test_a_warm_up_is_bounded_and_ends_for_a_reason(
    prompts: int, max_new_tokens: int, lengths: list[int | None]
) -> None:
    host = ScriptedHost(lengths)
    if lengths[0] is None:
        with pytest.raises(EngineFault, match="warm-up request failed on active"):
            await measured(host, prompts=prompts, max_new_tokens=max_new_tokens).prepare(Arm.ACTIVE)
        assert len(host.prompts) == 1, "it ends at the first failure"
        return
    await measured(host, prompts=prompts, max_new_tokens=max_new_tokens).prepare(Arm.ACTIVE)
    count = len(host.prompts)
    oldest_first = [((number,),) for number in reversed(range(prompts))]
    assert host.prompts == oldest_first[:count]
    assert all(1 <= tokens <= max_new_tokens for tokens in host.tokens)
    given_ = [lengths[i % len(lengths)] for i in range(count)]
    answered = sum(min(length or 0, most) for length, most in zip(given_, host.tokens, strict=True))
    assert None not in given_[:-1], "no request follows a failed one"
    assert answered <= DRAFT_TOKENS
    assert count == min(prompts, DRAFT_PROMPTS) or answered == DRAFT_TOKENS or given_[-1] is None


async def test_a_draft_of_fixed_shape_has_no_controller_that_must_get_to_know_it() -> None:
    host = ScriptedHost()
    await measured(host, learns=False).prepare(Arm.ACTIVE)
    assert host.tokens == [ENGINE_TOKENS]


async def test_a_draft_on_which_some_requests_fail_is_left_to_the_rounds() -> None:
    host = ScriptedHost((100, None))
    await measured(host, concurrencies=(1, 4)).prepare(Arm.ACTIVE)
    assert host.calls == ["holds active", "active answers 100", "active answers 100", "holds active"]


async def test_an_engine_that_dies_in_the_warm_up_is_no_verdict() -> None:
    with pytest.raises(MeasurementError, match="died"):
        await measured(ScriptedHost((100, None), dead=True)).prepare(Arm.ACTIVE)


async def test_an_engine_that_dies_in_a_batch_is_no_verdict() -> None:
    with pytest.raises(MeasurementError, match="died"):
        await measured(ScriptedHost((None,), dead=True)).run(Arm.CANDIDATE, [(1,)], 1)


async def test_no_draft_is_warmed_up_after_the_deadline() -> None:
    host = ScriptedHost()
    await measured(host, seconds=-1.0).prepare(Arm.ACTIVE)
    assert host.calls == ["holds active", "holds active"]


async def test_no_measured_request_is_traced_or_teaches_lookup_and_only_offs_ask_for_no_speculation() -> None:
    host = ScriptedHost()
    engine = measured(host)
    for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.NGRAM):
        await engine.prepare(arm)
        await engine.run(arm, [(1,)], 1)
    assert all(wish["trace"] is False for wish in host.wishes)


async def test_lookup_begins_with_conversations_that_it_may_answer_others_from() -> None:
    host = ScriptedHost((2, None, 2))
    conversations = [(number, number) for number in range(10)]
    await measured(host).fill_lookup(conversations)
    assert [text for batch in host.prompts for text in batch] == conversations, "a failed request ends nothing"
    assert set(host.tokens) == {LOOKUP_TOKENS}
    assert all(wish.get("trace", True) for wish in host.wishes)


async def test_an_engine_that_dies_of_a_conversation_is_no_verdict() -> None:
    with pytest.raises(MeasurementError, match="died"):
        await measured(ScriptedHost((None,), dead=True)).fill_lookup([(1, 2)])
