"""Closed-loop load on one server's ``/generate``: what a batch cost, and the answers for the comparison.

Invariant: every prompt of a batch ends as an answer or as a failure; none is retried. Decoding is greedy and stops at
the model's own end of text, as served traffic does.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from aurora_protocol.agent_api import MEASUREMENT_PREFIX
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault, EngineUnreachable


@dataclass(frozen=True)
class Answer:
    """Token ids of one greedy answer, and the verify rounds behind it (None without speculation)."""

    tokens: tuple[int, ...]
    verify_rounds: int | None


@dataclass(frozen=True)
class BatchResult:
    """One batch: an answer, or None for a failed request, per prompt; wall seconds for all of them."""

    answers: tuple[Answer | None, ...]
    seconds: float
    unreached: int = 0
    """Of the failures: requests whose connection failed, which may be the network's fault."""

    @property
    def tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers if answer is not None)

    @property
    def failures(self) -> int:
        return sum(answer is None for answer in self.answers)

    @property
    def verify_rounds(self) -> int | None:
        counts = [a.verify_rounds for a in self.answers if a is not None and a.verify_rounds is not None]
        return sum(counts) if counts else None


@dataclass(frozen=True)
class Client:
    """Requests to one server. ``timeout`` bounds one request, in seconds.

    Their ids start with :data:`MEASUREMENT_PREFIX`, so that a server which traces does not take them for traffic.
    """

    session: aiohttp.ClientSession
    url: str
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    async def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        engine = SGLangClient(self.session, self.url, headers=self.headers)
        body = {"rid": MEASUREMENT_PREFIX + secrets.token_hex(8), **body}
        return await engine.generate(body, timeout_seconds=self.timeout)

    async def answer(self, prompt: Sequence[int], max_new_tokens: int) -> Answer | None:
        """The greedy answer to ``prompt``; None when the request failed."""
        try:
            return await self._answer(prompt, max_new_tokens)
        except EngineUnreachable:
            return None

    async def _answer(self, prompt: Sequence[int], max_new_tokens: int) -> Answer | None:
        parameters = {"temperature": 0, "max_new_tokens": max_new_tokens, "ignore_eos": False}
        try:
            body = await self._generate({"input_ids": list(prompt), "sampling_params": parameters})
            finish = body["meta_info"]["finish_reason"]["type"]
            tokens = tuple(body["output_ids"])
        except EngineUnreachable:
            raise
        except (EngineFault, KeyError, TypeError):
            return None
        if finish not in ("stop", "length"):
            return None
        return Answer(tokens, body["meta_info"].get("spec_verify_ct"))

    async def batch(self, prompts: Sequence[Sequence[int]], concurrency: int, max_new_tokens: int) -> BatchResult:
        """Answer all prompts with ``concurrency`` requests under way at any time."""
        answers: list[Answer | None] = [None] * len(prompts)
        todo: Iterator[tuple[int, Sequence[int]]] = iter(list(enumerate(prompts)))
        unreached = 0

        async def worker() -> None:
            nonlocal unreached
            for index, prompt in todo:
                try:
                    answers[index] = await self._answer(prompt, max_new_tokens)
                except EngineUnreachable:
                    unreached += 1

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return BatchResult(tuple(answers), time.perf_counter() - began, unreached)

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """How far apart the server's own log-probabilities of two next tokens lie after ``prefix``.

        Log-probabilities differ by the same amount as logits. Raises :class:`EngineFault`.
        """
        body = {
            "input_ids": list(prefix),
            "sampling_params": {"temperature": 0, "max_new_tokens": 1, "ignore_eos": True},
            "return_logprob": True,
            "token_ids_logprob": [one, other],
        }
        try:
            rows = (await self._generate(body))["meta_info"]["output_token_ids_logprobs"][0]
            found = {int(row[1]): float(row[0]) for row in rows}
            return abs(found[one] - found[other])
        except (EngineFault, KeyError, TypeError, IndexError) as error:
            raise EngineFault(f"re-scoring: {type(error).__name__}") from error
