"""What the measured engine answers: which draft it holds, what follows a swap, and what each request asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from aurora_protocol.evidence_records import Arm
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.measured_engine import LOOKUP_TOKENS, Answer, BatchResult, LoadClient, MeasuredEngine


@dataclass
class ScriptedHost:
    """Stands in for the engine and who swaps it. Notes every call."""

    failing: set[int] = field(default_factory=set)
    """The prompts that fail, by their first token."""
    dead: bool = False
    """Whether a failed request means that the engine died."""
    calls: list[str] = field(default_factory=list)
    prompts: list[Sequence[int]] = field(default_factory=list)
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

    def client(self, arm: Arm, wish: Mapping[str, Any]) -> LoadClient:
        assert (wish.get("speculate") is False) == (arm is Arm.OFF)
        self.arm = arm
        self.wishes.append(wish)
        return cast(LoadClient, self)

    async def batch(self, prompts: Sequence[Sequence[int]], concurrency: int, max_new_tokens: int) -> BatchResult:
        assert concurrency == len(prompts) or max_new_tokens == LOOKUP_TOKENS
        self.prompts += prompts
        self.calls.append(f"{self.arm} answers {max_new_tokens}")
        answer = Answer((1,) * max_new_tokens, 1)
        return BatchResult(tuple(None if prompt[0] in self.failing else answer for prompt in prompts), 1.0)


def measured(host: ScriptedHost, max_new_tokens: int = 100) -> MeasuredEngine:
    return MeasuredEngine(host, (7,), max_new_tokens)


async def test_each_swap_is_followed_by_a_short_answer_and_every_arm_finds_an_empty_cache() -> None:
    host = ScriptedHost()
    engine = measured(host)
    for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.CANDIDATE, Arm.ACTIVE, Arm.OFF):
        await engine.prepare(arm)
    assert host.calls == [
        *("holds active", "holds active"),
        *("holds candidate", "candidate answers 24", "holds candidate"),
        "holds candidate",
        *("holds active", "active answers 24", "holds active"),
        "holds active",
    ]


async def test_the_answer_after_a_swap_is_no_longer_than_the_measured_ones() -> None:
    host = ScriptedHost()
    await measured(host, max_new_tokens=5).prepare(Arm.CANDIDATE)
    assert host.calls[1] == "candidate answers 5"


async def test_a_draft_on_which_some_requests_fail_is_left_to_the_rounds() -> None:
    await measured(ScriptedHost({7})).prepare(Arm.CANDIDATE)


async def test_an_engine_that_dies_is_no_verdict() -> None:
    engine = measured(ScriptedHost({7}, dead=True))
    for call in (engine.prepare(Arm.CANDIDATE), engine.run(Arm.CANDIDATE, [(7,)], 1), engine.fill_lookup([(7, 2)])):
        with pytest.raises(MeasurementError, match="died"):
            await call


async def test_no_measured_request_is_traced_or_teaches_lookup_and_only_offs_ask_for_no_speculation() -> None:
    host = ScriptedHost()
    engine = measured(host)
    for arm in (Arm.OFF, Arm.ACTIVE, Arm.CANDIDATE, Arm.NGRAM):
        await engine.prepare(arm)
        await engine.run(arm, [(1,)], 1)
    assert all(wish["trace"] is False for wish in host.wishes)


async def test_lookup_begins_with_conversations_that_it_may_answer_others_from() -> None:
    host = ScriptedHost({3})
    conversations = [(number, number) for number in range(10)]
    await measured(host).fill_lookup(conversations)
    assert host.prompts == conversations, "a failed request ends nothing"
    assert host.calls == [f"off answers {LOOKUP_TOKENS}"]
    assert all(wish.get("trace", True) for wish in host.wishes)
