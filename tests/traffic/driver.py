"""Load driver: sends streamed ``/v1/chat/completions`` requests in a closed loop, from its own thread.

The driver proves promise 2 ("Unbroken") from a client's side. Invariant: every request ends as a success or as a
failure of a named kind. Kinds are a status other than 200, a broken or unfinished stream, a missing finish reason or
usage, and a timeout. A stop lets requests in flight finish.

By default a request is sent once. With ``retry_seconds`` the driver retries failed attempts and counts each of them.
Clients whose server may lose its machine retry in the same way.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.traffic.prompts import Domain, prompts
from tests.traffic.report import RequestCounts, Summary

RETRY_INTERVAL_SECONDS = 0.2


@dataclass(frozen=True)
class RequestOptions:
    """How each request is sent."""

    max_tokens: int = 96
    """The longest answer, in tokens."""
    timeout_seconds: float = 120.0
    """For one attempt, from connecting to the end of the stream."""
    retry_seconds: float = 0.0
    """How long a request is retried, from its first attempt. After that, the request counts as failed."""


@dataclass(frozen=True)
class Conversation:
    """What a user says, turn by turn, after an optional system prompt. Each turn is a request."""

    turns: tuple[str, ...]
    system: str = ""

    def opening(self) -> list[dict[str, str]]:
        """The messages before the first turn."""
        return [{"role": "system", "content": self.system}] if self.system else []


@dataclass(frozen=True)
class Load:
    """Which requests are sent, and where."""

    url: str
    """Base URL of the server, without ``/v1``."""
    domain: Domain = Domain.EXTRACTION
    seed: int = 0
    """Selects the prompts of the domain."""
    concurrency: int = 2
    """Workers of the closed loop: each sends its next request when its last one has ended."""
    options: RequestOptions = RequestOptions()


@dataclass
class TrafficDriver:
    """One run of a load. ``start`` returns at once. ``stop`` lets requests in flight finish and returns the summary."""

    load: Load
    conversations: Iterator[Conversation] | None = None
    """What to send instead of the domain's prompts. The run ends after the last one."""
    _counts: RequestCounts = field(default_factory=RequestCounts, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _ended: float | None = field(default=None, init=False)
    _waiting: Iterator[Conversation] = field(init=False)

    def __post_init__(self) -> None:
        self._waiting = self.conversations or self._of_domain(self.load.domain)

    def _of_domain(self, domain: Domain) -> Iterator[Conversation]:
        return (Conversation((prompt,)) for prompt in prompts(domain, self.load.seed))

    def start(self) -> None:
        """Start to send, from a thread of this driver."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether requests are being sent or still in flight."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> Summary:
        """Stop sending, wait for the requests in flight (each has a timeout), and return the summary."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        return self.summary()

    def switch_domain(self, domain: Domain) -> None:
        """Send prompts of another domain, from the next request on."""
        self._waiting = self._of_domain(domain)

    def summary(self) -> Summary:
        """The results so far. May be called while requests are being sent."""
        end = time.monotonic() if self._ended is None else self._ended
        return self._counts.summary(max(0.0, end - self._started) if self._started else 0.0)

    async def _run(self) -> None:
        """Send requests until a stop is requested, or until the conversations end."""
        self._started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=self.load.options.timeout_seconds)
        # One connection per request, because a Service distributes connections, not requests, over its pods.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            try:
                await asyncio.gather(*(self._worker(session) for _ in range(self.load.concurrency)))
            finally:
                self._ended = time.monotonic()

    async def _worker(self, session: aiohttp.ClientSession) -> None:
        while not self._stopping.is_set() and (conversation := next(self._waiting, None)) is not None:
            await self._talk(session, conversation)

    async def _talk(self, session: aiohttp.ClientSession, conversation: Conversation) -> None:
        """Send the turns of a conversation, each after the answer to the one before. A turn that failed is the last."""
        messages = conversation.opening()
        for turn in conversation.turns:
            messages.append({"role": "user", "content": turn})
            if not await self._send(session, messages):
                return

    async def _send(self, session: aiohttp.ClientSession, messages: list[dict[str, str]]) -> bool:
        """Send one request, with retries as the load allows, and count its outcome. Appends the answer."""
        deadline = time.monotonic() + self.load.options.retry_seconds
        while (failure := await self._attempt(session, messages)) is not None:
            await asyncio.sleep(RETRY_INTERVAL_SECONDS)  # a refused connection must not become a busy loop
            if time.monotonic() >= deadline:
                self._counts.failures[failure] += 1
                return False
            self._counts.retries[failure] += 1
        return True

    async def _attempt(self, session: aiohttp.ClientSession, messages: list[dict[str, str]]) -> str | None:
        """Send a request once. Returns the kind of its failure, or None after a success."""
        try:
            return await self._stream(session, messages)
        except TimeoutError:
            return "timeout"
        except aiohttp.ClientError as error:
            return type(error).__name__
        except ValueError:
            return "malformed stream"

    async def _stream(self, session: aiohttp.ClientSession, messages: list[dict[str, str]]) -> str | None:
        """Send a request once and read its stream. Returns the kind of failure that the stream shows, or None."""
        body: dict[str, Any] = {
            "model": "default",
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.load.options.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        text: list[str] = []
        finish: str | None = None
        tokens: int | None = None
        done = False
        async with session.post(f"{self.load.url.rstrip('/')}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                return f"status {response.status}"
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    done = True
                    continue
                event = json.loads(data)
                if "error" in event:
                    return "error in stream"
                if usage := event.get("usage"):
                    tokens = int(usage["completion_tokens"])
                for choice in event.get("choices", ()):
                    finish = choice.get("finish_reason") or finish
                    if piece := choice.get("delta", {}).get("content"):
                        text.append(piece)
        if not done:
            return "stream ended early"
        if finish not in ("stop", "length"):
            return f"finish reason {finish}"
        if tokens is None:
            return "no usage"
        self._counts.count_success(tokens=tokens, answer="".join(text))
        messages.append({"role": "assistant", "content": "".join(text)})
        return None
