"""Load driver: streamed ``/v1/chat/completions`` requests, closed loop or at a rate, in a thread of its own.

It exists to prove promise 2 ("Unbroken") from a client's side. Invariant: a request ends as a success or as a failure
of a named kind: a status other than 200, a broken or unfinished stream, a missing finish reason or usage, a timeout. It
is sent once, unless ``again_seconds`` makes the client one that asks again when an answer breaks, as clients do whose
server's machine may end; every answer that broke is counted then. Stopping lets requests under way finish.
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
from tests.traffic.report import Summary, VocabularyCoverage

Progress = Callable[[str], None]
AGAIN_S = 0.2


@dataclass(frozen=True)
class Load:
    """What is sent where. ``rate`` (requests per second) replaces the closed loop of ``concurrency`` workers."""

    url: str
    domain: Domain = Domain.EXTRACTION
    concurrency: int = 2
    rate: float | None = None
    seconds: float | None = None
    requests: int | None = None
    max_tokens: int = 96
    timeout: float = 120.0
    again_seconds: float = 0.0
    """A request whose answer breaks is sent again for this long; then it has failed."""
    seed: int = 0
    model: str = "default"
    progress_seconds: float = 10.0


@dataclass
class Driver:
    """One run of a load. ``start`` returns at once; ``stop`` lets requests under way finish and returns the summary."""

    load: Load
    progress: Progress | None = None
    messages: Iterator[str] | None = None
    """What is asked instead of the domain's prompts; the run ends with them."""
    _tally: VocabularyCoverage = field(default_factory=VocabularyCoverage, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)
    _ended: float | None = field(default=None, init=False)
    _sent: int = field(default=0, init=False)
    _prompts: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        self._prompts = self.messages or prompts(self.load.domain, self.load.seed)

    def start(self) -> None:
        """Begin sending from a thread of this driver's own."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self.run()), name="traffic", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether more may be sent, or something is under way."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> Summary:
        """Send no more, wait for the requests under way (each has a timeout), and sum up."""
        self.request_stop()
        if self._thread is not None:
            self._thread.join()
        return self.summary()

    def switch(self, domain: Domain) -> None:
        """From the next request on, ask for something else: traffic drifts."""
        self._prompts = prompts(domain, self.load.seed)

    def wait(self) -> Summary:
        """Wait until the load's own end (``seconds`` or ``requests``)."""
        if self._thread is not None:
            self._thread.join()
        return self.summary()

    def request_stop(self) -> None:
        """Send no more; safe from a signal handler."""
        self._stopping.set()

    def summary(self) -> Summary:
        """The account so far; also while running."""
        end = time.monotonic() if self._ended is None else self._ended
        return self._tally.summary(self.load.domain, max(0.0, end - self._began) if self._began else 0.0)

    async def run(self) -> Summary:
        """Send until the load ends or a stop is asked for."""
        self._began = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=self.load.timeout)
        # A connection per request: a Service spreads connections, not requests, over its pods.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            reporter = asyncio.create_task(self._report())
            try:
                if self.load.rate is None:
                    await asyncio.gather(*(self._worker(session) for _ in range(self.load.concurrency)))
                else:
                    await self._open_loop(session, self.load.rate)
            finally:
                self._ended = time.monotonic()
                reporter.cancel()
        return self.summary()

    def _may_send(self) -> bool:
        """Whether another request may be sent; counts it when so."""
        load = self.load
        over_time = load.seconds is not None and time.monotonic() - self._began >= load.seconds
        over_count = load.requests is not None and self._sent >= load.requests
        if self._stopping.is_set() or over_time or over_count:
            return False
        self._sent += 1
        return True

    async def _worker(self, session: aiohttp.ClientSession) -> None:
        while self._may_send() and (prompt := next(self._prompts, None)) is not None:
            await self._send(session, prompt)

    async def _open_loop(self, session: aiohttp.ClientSession, rate: float) -> None:
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while self._may_send() and (prompt := next(self._prompts, None)) is not None:
                group.create_task(self._send(session, prompt))
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _send(self, session: aiohttp.ClientSession, prompt: str) -> None:
        deadline = time.monotonic() + self.load.again_seconds
        while (broken := await self._ask(session, prompt)) is not None:
            await asyncio.sleep(AGAIN_S)  # a refused connection must not become a busy loop
            if time.monotonic() >= deadline:
                self._tally.failures[broken] += 1
                return
            self._tally.broken[broken] += 1

    async def _ask(self, session: aiohttp.ClientSession, prompt: str) -> str | None:
        """One attempt; why its answer broke, or None."""
        try:
            return await self._stream(session, prompt)
        except TimeoutError:
            return "timeout"
        except aiohttp.ClientError as error:
            return type(error).__name__
        except ValueError:
            return "malformed stream"

    async def _stream(self, session: aiohttp.ClientSession, prompt: str) -> str | None:
        """One request; the kind of its failure, or None."""
        body: dict[str, Any] = {
            "model": self.load.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.load.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.monotonic()
        times: list[float] = []
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
                        times.append(time.monotonic())
                        text.append(piece)
        if not done:
            return "stream ended early"
        if finish not in ("stop", "length"):
            return f"finish reason {finish}"
        if tokens is None:
            return "no usage"
        self._tally.success(tokens=tokens, times=times, began=began, answer="".join(text))
        return None

    async def _report(self) -> None:
        while self.progress is not None:
            await asyncio.sleep(self.load.progress_seconds)
            now = self.summary()
            share = "-" if now.distinct_4grams is None else f"{now.distinct_4grams:.2f}"
            self.progress(
                f"traffic: {now.requests} requests, {now.failed} failed, {now.answer_tokens} tokens, "
                f"{now.tokens_per_second:.1f} tok/s, distinct 4-grams {share}"
            )


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Command line; exit status 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.traffic", description=__doc__)
    parser.add_argument("--url", required=True, help="base URL, without /v1")
    parser.add_argument("--domain", type=Domain, choices=list(Domain), default=Domain.EXTRACTION)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--rate", type=float, help="requests per second, instead of a closed loop")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the summary")
    options = vars(parser.parse_args())
    destination: Path | None = options.pop("json")
    driver = Driver(Load(**options), progress=_say)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: driver.request_stop())
    driver.start()
    summary = driver.wait()
    if destination is not None:
        destination.write_bytes(summary.to_json())
    _say(summary.to_json().decode())
    raise SystemExit(1 if summary.failed else 0)
