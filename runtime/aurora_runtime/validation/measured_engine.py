"""The engine under measurement: loads an arm's draft, warms the arm up, and answers batches with it.

One engine runs off and both drafts, on a Job's own engine as on that of a lent replica. Each request says whether it
may be speculated for, and the drafts are swapped. Who starts and swaps the engine is an :class:`EngineHost`.

An arm answers some prompts before it is measured, outside the clock. With an adaptive shape, the speculation controller
proposes from a source only once it has tried the source, and learns what a round costs for each number of requests at a
time. A pod learns this once and then serves for hours. A batch that is measured meanwhile widens the interval by more
than the next ones narrow it (docs/explanation/gate-statistics.md), and the draft that is measured first would pay.

The load is closed-loop: a batch answers all its prompts with a fixed number of requests in flight. Decoding is greedy
and stops at the model's own end of text, as for served traffic.

Invariants: every prompt of a batch ends as an answer or as a failure, unless the measurement's time ends the whole
batch. No request is retried. While the controller gets to know a draft, one request is in flight at a time, because a
round of several requests counts once. No request follows a failed one in a warm-up. No measured request is traced, and
lookup answers no other request from it, so no round teaches lookup the answers of the next one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import aiohttp

from aurora_protocol.evidence_records import Arm
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.errors import EngineFault, EngineUnreachable, MeasurementError, OutOfTime
from aurora_runtime.request_wish import PARAMETER

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 300.0
"""Time limit of one request for an answer."""
DRAFT_ARMS: Final = (Arm.ACTIVE, Arm.CANDIDATE)
ENGINE_TOKENS: Final = 24
"""Length of the answer that warms up an arm without a controller that must get to know it."""
SWAP_TOKENS: Final = 8
"""The same after a swap to a draft that the engine knows. Short, because a round has two or three swaps."""
DRAFT_TOKENS: Final = 256
"""Tokens of the answers with which the controller gets to know a draft."""
DRAFT_PROMPTS: Final = 16
"""Most prompts that are answered for that, because answers may end early."""
BATCH_TOKENS: Final = 24
"""Tokens of each answer of a batch at a declared concurrency. The controller times off four times before it tries
another arm, and a round that a prefill interrupts does not count."""
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


class EngineHost(Protocol):
    """Starts the engine and swaps its draft."""

    async def hold(self, arm: Arm) -> bool:
        """Make the engine hold ``arm``'s draft, with an empty prefix cache. Off needs no certain draft.

        Returns whether the draft was swapped. Raises :class:`OutOfTime` when the measurement's time is over.
        """

    async def confirm(self, arm: Arm, result: BatchResult) -> None:
        """Raise :class:`MeasurementError` unless the engine that gave ``result`` still runs and belongs to us."""

    def client(self, arm: Arm, wish: Mapping[str, Any], deadline: float) -> LoadClient:
        """A client for answers of ``arm``."""


@dataclass
class MeasuredEngine:
    """``deadline`` is on :func:`time.monotonic`, in seconds."""

    host: EngineHost
    prompts: Sequence[tuple[int, ...]]
    """The measured prompts, newest first. The oldest warm the arms up."""
    concurrencies: Sequence[int]
    max_new_tokens: int
    deadline: float
    learns: bool = True
    """Whether a controller must get to know each draft. No controller chooses the rounds of a fixed shape."""
    _known: set[Arm] = field(default_factory=set, init=False)
    """The arms that were warmed up at all."""

    async def fill_lookup(self, conversations: Sequence[tuple[int, ...]]) -> None:
        """Have the engine process ``conversations``, so that lookup knows about as much as in a pod."""
        client = self.host.client(Arm.OFF, SHARED, min(self.deadline, time.monotonic() + LOOKUP_SECONDS))
        try:
            result = await client.batch(conversations, LOOKUP_CONCURRENCY, LOOKUP_TOKENS)
        except OutOfTime:
            log.info("lookup begins with a part of %d recorded conversations", len(conversations))
            return
        await self.host.confirm(Arm.OFF, result)
        log.info(
            "lookup begins with %d of %d recorded conversations",
            len(conversations) - result.failures,
            len(conversations),
        )

    async def prepare(self, arm: Arm) -> None:
        """Load ``arm``'s draft, warm the arm up where needed, and empty the prefix cache."""
        swapped = await self.host.hold(arm)
        if swapped or arm not in self._known:
            await self._warm_up(arm)
            await self.host.hold(arm)  # empties the prefix cache, which the warm-up filled

    async def _warm_up(self, arm: Arm) -> None:
        """Ends at the first failure. The rounds judge a draft on which only some requests fail."""
        oldest = tuple(reversed(self.prompts[-DRAFT_PROMPTS:]))
        if arm in self._known:
            alone, most_tokens, together = oldest[:1], SWAP_TOKENS, []
        else:
            learns = self.learns and arm in DRAFT_ARMS
            alone, most_tokens = (oldest, DRAFT_TOKENS) if learns else (oldest[:1], ENGINE_TOKENS)
            together = [tuple(itertools.islice(itertools.cycle(oldest), c)) for c in self.concurrencies if c > 1]
        self._known.add(arm)
        client, answered = self._client(arm), 0
        for prompts in [*((prompt,) for prompt in alone), *together]:
            tokens = most_tokens - answered if len(prompts) == 1 else BATCH_TOKENS
            if tokens <= 0 or time.monotonic() > self.deadline:
                continue
            result = await client.batch(prompts, len(prompts), min(self.max_new_tokens, tokens))
            answered += result.tokens
            if result.failures:
                await self.host.confirm(arm, result)
                if not answered:
                    raise EngineFault(f"a warm-up request failed on {arm}: see the engine's log")
                return

    def _client(self, arm: Arm) -> LoadClient:
        return self.host.client(arm, HELD_OFF if arm is Arm.OFF else MEASURED, self.deadline)

    async def run(self, arm: Arm, prompts: Sequence[tuple[int, ...]], concurrency: int) -> BatchResult:
        """Answer ``prompts`` (token ids) with ``arm``, with ``concurrency`` requests in flight.

        Raises :class:`MeasurementError` when the engine died or was lost, and :class:`OutOfTime` at the deadline.
        """
        result = await self._client(arm).batch(prompts, concurrency, self.max_new_tokens)
        await self.host.confirm(arm, result)
        return result

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """Gap between the target's log-probabilities of two next tokens after ``prefix``."""
        return await self._client(Arm.OFF).margin(prefix, one, other)
