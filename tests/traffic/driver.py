"""Load driver: sends streamed ``/v1/chat/completions`` requests, in a closed loop or at a rate, from its own thread.

The driver proves promise 2 ("Unbroken") from a client's side. Invariant: every request ends as a success or as a
failure of a named kind. Kinds are a status other than 200, a broken or unfinished stream, a missing finish reason or
usage, and a timeout. A stop lets requests in flight finish.

By default a request is sent once. With ``retry_seconds`` the driver retries failed attempts and counts each of them.
Clients whose server may lose its machine retry in the same way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
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
    model: str = "default"
    """The name of the model in each request."""


@dataclass(frozen=True)
class Conversation:
    """What a user says, turn by turn, after an optional system prompt. Each turn is a request."""

    turns: tuple[str, ...]
    system: str = ""

    def opening(self) -> list[dict[str, str]]:
        """The messages before the first turn."""
        return [{"role": "system", "content": self.system}] if self.system else []


@dataclass(frozen=True)
class Limit:
    """When a load ends by itself: after the first limit that is reached. None: no limit."""

    duration_seconds: float | None = None
    max_requests: int | None = None


@dataclass(frozen=True)
class Load:
    """Which requests are sent, where, and for how long."""

    url: str
    """Base URL of the server, without ``/v1``."""
    domain: Domain = Domain.EXTRACTION
    seed: int = 0
    """Selects the prompts of the domain."""
    concurrency: int = 2
    """Workers of the closed loop: each sends its next request when its last one has ended."""
    requests_per_second: float | None = None
    """Sends requests at this rate instead of in a closed loop."""
    options: RequestOptions = RequestOptions()
    limit: Limit = Limit()


@dataclass
class TrafficDriver:
    """One run of a load. ``start`` returns at once. ``stop`` lets requests in flight finish and returns the summary."""

    load: Load
    print_progress: Callable[[str], None] | None = None
    """Gets one line of counts every ``progress_seconds``."""
    progress_seconds: float = 10.0
    conversations: Iterator[Conversation] | None = None
    """What to send instead of the domain's prompts. The run ends after the last one."""
    _counts: RequestCounts = field(default_factory=RequestCounts, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _ended: float | None = field(default=None, init=False)
    _sent: int = field(default=0, init=False)
    _waiting: Iterator[Conversation] = field(init=False)

    def __post_init__(self) -> None:
        self._waiting = self.conversations or self._of_domain(self.load.domain)

    def _of_domain(self, domain: Domain) -> Iterator[Conversation]:
        return (Conversation((prompt,)) for prompt in prompts(domain, self.load.seed))

    def start(self) -> None:
        """Start to send, from a thread of this driver."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self.run()), name="traffic", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether requests are being sent or still in flight."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> Summary:
        """Stop sending, wait for the requests in flight (each has a timeout), and return the summary."""
        self.request_stop()
        if self._thread is not None:
            self._thread.join()
        return self.summary()

    def switch_domain(self, domain: Domain) -> None:
        """Send prompts of another domain, from the next request on."""
        self._waiting = self._of_domain(domain)

    def wait_until_done(self) -> Summary:
        """Wait until the load reaches its limit (duration, requests or messages), and return the summary."""
        if self._thread is not None:
            self._thread.join()
        return self.summary()

    def request_stop(self) -> None:
        """Stop sending. A signal handler may call this."""
        self._stopping.set()

    def summary(self) -> Summary:
        """The results so far. May be called while requests are being sent."""
        end = time.monotonic() if self._ended is None else self._ended
        return self._counts.summary(self.load.domain, max(0.0, end - self._started) if self._started else 0.0)

    async def run(self) -> Summary:
        """Send requests until the load reaches its limit or a stop is requested."""
        self._started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=self.load.options.timeout_seconds)
        # One connection per request, because a Service distributes connections, not requests, over its pods.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            reporter = asyncio.create_task(self._print_progress_lines())
            try:
                if self.load.requests_per_second is None:
                    await asyncio.gather(*(self._worker(session) for _ in range(self.load.concurrency)))
                else:
                    await self._open_loop(session, self.load.requests_per_second)
            finally:
                self._ended = time.monotonic()
                reporter.cancel()
        return self.summary()

    def _claim_request(self) -> bool:
        """Count one more request as sent, and return True. Returns False if the load is at its limit or was stopped."""
        limit = self.load.limit
        out_of_time = limit.duration_seconds is not None and time.monotonic() - self._started >= limit.duration_seconds
        all_sent = limit.max_requests is not None and self._sent >= limit.max_requests
        if self._stopping.is_set() or out_of_time or all_sent:
            return False
        self._sent += 1
        return True

    async def _worker(self, session: aiohttp.ClientSession) -> None:
        while self._claim_request() and (conversation := next(self._waiting, None)) is not None:
            await self._talk(session, conversation)

    async def _open_loop(self, session: aiohttp.ClientSession, requests_per_second: float) -> None:
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while self._claim_request() and (conversation := next(self._waiting, None)) is not None:
                group.create_task(self._talk(session, conversation))
                due += 1 / requests_per_second
                await asyncio.sleep(max(0.0, due - time.monotonic()))

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
            "model": self.load.options.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.load.options.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.monotonic()
        piece_times: list[float] = []
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
                        piece_times.append(time.monotonic())
                        text.append(piece)
        if not done:
            return "stream ended early"
        if finish not in ("stop", "length"):
            return f"finish reason {finish}"
        if tokens is None:
            return "no usage"
        self._counts.count_success(tokens=tokens, piece_times=piece_times, started=started, answer="".join(text))
        messages.append({"role": "assistant", "content": "".join(text)})
        return None

    async def _print_progress_lines(self) -> None:
        while self.print_progress is not None:
            await asyncio.sleep(self.progress_seconds)
            now = self.summary()
            share = "-" if now.distinct_4grams is None else f"{now.distinct_4grams:.2f}"
            self.print_progress(
                f"traffic: {now.requests} requests, {now.failed} failed, {now.answer_tokens} tokens, "
                f"{now.tokens_per_second:.1f} tok/s, distinct 4-grams {share}"
            )


def _print_line(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """The command line. The exit status is 1 if a request failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.traffic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="base URL of the server, without /v1")
    parser.add_argument(
        "--domain", type=Domain, choices=list(Domain), default=Domain.EXTRACTION, help="the kind of prompts"
    )
    parser.add_argument("--concurrency", type=int, default=2, help="workers of the closed loop (default: %(default)s)")
    parser.add_argument("--requests-per-second", type=float, help="send at this rate instead of in a closed loop")
    parser.add_argument("--duration-seconds", type=float, help="stop after this time (default: no limit)")
    parser.add_argument("--max-requests", type=int, help="stop after so many requests (default: no limit)")
    parser.add_argument("--max-tokens", type=int, default=96, help="the longest answer (default: %(default)s)")
    parser.add_argument("--timeout-seconds", type=float, default=120.0, help="per request (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="selects the prompts (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the summary to")
    arguments = parser.parse_args()
    load = Load(
        url=arguments.url,
        domain=arguments.domain,
        seed=arguments.seed,
        concurrency=arguments.concurrency,
        requests_per_second=arguments.requests_per_second,
        options=RequestOptions(max_tokens=arguments.max_tokens, timeout_seconds=arguments.timeout_seconds),
        limit=Limit(duration_seconds=arguments.duration_seconds, max_requests=arguments.max_requests),
    )
    driver = TrafficDriver(load, print_progress=_print_line)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: driver.request_stop())
    driver.start()
    summary = driver.wait_until_done()
    if arguments.json is not None:
        arguments.json.write_bytes(summary.to_json())
    _print_line(summary.to_json().decode())
    raise SystemExit(1 if summary.failed else 0)
