"""Closed-loop load on one engine: answers all prompts of a batch and measures what the batch cost.

Invariants: every prompt of a batch ends as an answer or as a failure, unless the measurement's time ends the whole
batch. No request is retried. Decoding is greedy and stops at the model's own end of text, as for served traffic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault, EngineUnreachable, MeasurementError, OutOfTime
from aurora_runtime.request_wish import PARAMETER

REQUEST_SECONDS: Final = 300.0
"""Time limit of one request for an answer."""


@dataclass(frozen=True)
class Answer:
    """Token ids of one greedy answer, and its verify rounds (None without speculation)."""

    tokens: tuple[int, ...]
    verify_rounds: int | None


@dataclass(frozen=True)
class BatchResult:
    """The answers of one batch, None for each failed request, and the wall time of the whole batch."""

    answers: tuple[Answer | None, ...]
    seconds: float
    unreached: int = 0
    """How many failures were failed connections, which may be the network's fault."""

    @property
    def tokens(self) -> int:
        """Answer tokens of the batch."""
        return sum(len(answer.tokens) for answer in self.answers if answer is not None)

    @property
    def failures(self) -> int:
        """Requests without an answer."""
        return sum(answer is None for answer in self.answers)

    @property
    def verify_rounds(self) -> int | None:
        """Verify rounds of the batch. None without speculation."""
        counts = [a.verify_rounds for a in self.answers if a is not None and a.verify_rounds is not None]
        return sum(counts) if counts else None


@dataclass(frozen=True)
class LoadClient:
    """Requests to the engine at ``url``."""

    session: aiohttp.ClientSession
    url: str
    request_seconds: float
    """Time limit of one request."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    deadline: float | None = None
    """When every batch ends, on :func:`time.monotonic`, in seconds. None: never."""
    wish: Mapping[str, Any] = field(default_factory=dict)
    """What each request asks for (:mod:`aurora_runtime.request_wish`), such as no speculation."""

    async def batch(self, prompts: Sequence[Sequence[int]], concurrency: int, max_new_tokens: int) -> BatchResult:
        """Answer all prompts with ``concurrency`` requests in flight at any time.

        Raises :class:`OutOfTime` at the deadline. The requests in flight are cut, because one may take
        :attr:`request_seconds`, and the measurement's Job does not wait so long.
        """
        answers: list[Answer | None] = [None] * len(prompts)
        waiting = iter(list(enumerate(prompts)))
        unreached = 0

        async def worker() -> None:
            nonlocal unreached
            for index, prompt in waiting:
                try:
                    answers[index] = await self._answer(prompt, max_new_tokens)
                except EngineUnreachable:
                    unreached += 1

        started = time.perf_counter()
        time_left = None if self.deadline is None else self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(time_left):
                await asyncio.gather(*(worker() for _ in range(concurrency)))
        except TimeoutError as error:
            raise OutOfTime("a batch did not end in time: raise validation.timeoutSeconds") from error
        return BatchResult(tuple(answers), time.perf_counter() - started, unreached)

    async def context_length(self) -> int:
        """The engine's longest sequence, in tokens. Raises :class:`EngineFault`."""
        return await SGLangClient(self.session, self.url, headers=self.headers).context_length()

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the engine's own log-probabilities of two next tokens after ``prefix``.

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
            log_probabilities = {int(row[1]): float(row[0]) for row in rows}
            return abs(log_probabilities[one] - log_probabilities[other])
        except (EngineFault, KeyError, TypeError, IndexError) as error:
            raise EngineFault(f"log-probabilities of two tokens from {self.url}: {type(error).__name__}") from error

    async def _answer(self, prompt: Sequence[int], max_new_tokens: int) -> Answer | None:
        """The greedy answer to ``prompt``. None when the request failed.

        Raises :class:`EngineUnreachable` when the connection failed, and :class:`MeasurementError` when the engine
        speculated against the wish: a prefill makes one token, and a round without proposals makes one.
        """
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
        rounds = body["meta_info"].get("spec_verify_ct")
        if self.wish.get("speculate", True):
            return Answer(tokens, rounds)
        if rounds is not None and rounds < len(tokens) - 1:
            raise MeasurementError("the engine speculated for a request that asked for no speculation: see its log")
        return Answer(tokens, None)

    async def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        engine = SGLangClient(self.session, self.url, headers=self.headers)
        if self.wish:
            body["sampling_params"]["custom_params"] = {PARAMETER: dict(self.wish)}
        return await engine.generate(body, timeout_seconds=self.request_seconds)
