"""The engine under measurement: holds an arm's draft, and answers batches with it.

One engine runs off and both drafts, on a Job's own engine as on that of a lent replica. Each request says whether it
may be speculated for, and the drafts are swapped. Who starts and swaps the engine is an :class:`EngineHost`.

The load is closed-loop: a batch answers all its prompts with a fixed number of requests in flight. Decoding is greedy
and stops at the model's own end of text, as for served traffic.

Invariants: every prompt of a batch ends as an answer or as a failure. No request is retried. No measured request is
traced, and lookup answers no other request from it, so no round teaches lookup the answers of the next one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import aiohttp

from aurora_protocol.evidence_records import Arm
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault, EngineUnreachable, MeasurementError
from aurora_runtime.request_wish import PARAMETER

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 300.0
"""Time limit of one request for an answer."""
WARM_UP_TOKENS: Final = 24
"""Length of the answer after a swap that does not count. The controller of the engine has yet to try the draft."""
LOOKUP_SECONDS: Final = 60.0
"""Time limit for the conversations with which lookup begins."""
LOOKUP_CONCURRENCY: Final = 4
LOOKUP_TOKENS: Final = 1
"""Lookup takes a request's text at the latest when the request ends."""
MEASURED: Final[Mapping[str, Any]] = {"trace": False}
"""What a measured request asks for (``aurora_runtime.request_wish``)."""
HELD_OFF: Final[Mapping[str, Any]] = {"trace": False, "speculate": False}
SHARED: Final[Mapping[str, Any]] = {"speculate": False}
"""What a request asks for from which lookup may answer others. The Job's engine traces nothing."""


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
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    wish: Mapping[str, Any] = field(default_factory=dict)
    """What each request asks for (:mod:`aurora_runtime.request_wish`), such as no speculation."""

    async def batch(self, prompts: Sequence[Sequence[int]], concurrency: int, max_new_tokens: int) -> BatchResult:
        """Answer all prompts with ``concurrency`` requests in flight at any time."""
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
        await asyncio.gather(*(worker() for _ in range(concurrency)))
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
        return await engine.generate(body, timeout_seconds=REQUEST_SECONDS)


class EngineHost(Protocol):
    """Starts the engine and swaps its draft."""

    async def hold(self, arm: Arm) -> bool:
        """Make the engine hold ``arm``'s draft, with an empty prefix cache. Off needs no certain draft.

        Returns whether the draft was swapped.
        """

    async def confirm(self, arm: Arm, result: BatchResult) -> None:
        """Raise an error unless the engine that gave ``result`` still runs and belongs to us."""

    def client(self, arm: Arm, wish: Mapping[str, Any]) -> LoadClient:
        """A client for answers of ``arm``."""


@dataclass(frozen=True)
class MeasuredEngine:
    """The engine of ``host``. ``warm_up_prompt`` is answered after a swap."""

    host: EngineHost
    warm_up_prompt: Sequence[int]
    max_new_tokens: int

    async def fill_lookup(self, conversations: Sequence[Sequence[int]]) -> None:
        """Have the engine process ``conversations``, so that lookup knows about as much as in a pod."""
        client = self.host.client(Arm.OFF, SHARED)
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                result = await client.batch(conversations, LOOKUP_CONCURRENCY, LOOKUP_TOKENS)
        except TimeoutError:
            log.info("lookup begins with a part of %d recorded conversations", len(conversations))
            return
        await self.host.confirm(Arm.OFF, result)
        processed = len(conversations) - result.failures
        log.info("lookup begins with %d of %d recorded conversations", processed, len(conversations))

    async def prepare(self, arm: Arm) -> None:
        """Load ``arm``'s draft and empty the prefix cache. After a swap an answer that does not count comes first."""
        if await self.host.hold(arm):
            tokens = min(self.max_new_tokens, WARM_UP_TOKENS)
            await self.host.confirm(arm, await self._client(arm).batch([self.warm_up_prompt], 1, tokens))
            await self.host.hold(arm)  # empties the prefix cache, which the warm-up filled

    async def run(self, arm: Arm, prompts: Sequence[Sequence[int]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` (token ids) with ``arm``, with ``concurrency`` requests in flight.

        Raises an error when the engine died or was lost.
        """
        result = await self._client(arm).batch(prompts, concurrency, self.max_new_tokens)
        await self.host.confirm(arm, result)
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the target's log-probabilities of two next tokens after ``prefix``."""
        return await self._client(Arm.OFF).margin(prefix, one, other)

    def _client(self, arm: Arm) -> LoadClient:
        return self.host.client(arm, HELD_OFF if arm is Arm.OFF else MEASURED)
