"""Sends spans to an OpenTelemetry collector over OTLP/HTTP.

Invariants: :meth:`SpanExporter.offer` never waits, and nothing else of the operator waits for the collector. What the
queue cannot hold, and what the collector does not take within the retries, is dropped and counted. A span or an answer
that nobody thought of costs its batch and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final

import aiohttp

from aurora_operator import metrics
from aurora_operator.operator_config import OPERATOR_NAME, OperatorConfig
from aurora_operator.roll_traces.otlp_json import CONTENT_TYPE, rejected_spans, request_body
from aurora_operator.roll_traces.span import Span

log = logging.getLogger(__name__)

MAX_WAITING_SPANS: Final = 2048
MAX_BATCH_SPANS: Final = 256
TIMEOUT_SECONDS: Final = 10.0
RETRY_DELAYS_SECONDS: Final = (1.0, 5.0, 25.0)
RETRY_SECONDS: Final = 60.0
"""The last attempt to send a batch begins at most this long after the first, even if the collector asks for more."""
STOP_SECONDS: Final = 2.0
"""How long a stopping operator goes on sending. The Lease is released before."""
MAX_ANSWER_BYTES: Final = 65536
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""Source: the OTLP specification, "Retryable Response Codes"."""
_SCOPE: Final = "aurora_operator.roll_traces"


@dataclass(frozen=True)
class _Attempt:
    """How one attempt to send a batch ended."""

    rejected: int
    """Number of spans that the collector did not take."""
    problem: str
    """Why it did not."""
    retry_after_seconds: float | None = None
    """How long the collector asks to wait before the next attempt, at least 0. None: try no more."""


class SpanExporter:
    """The queue of finished spans, and the task that sends them.

    Args:
        url: the collector's path for traces, ending with ``/v1/traces``.
        resource: attributes of this process.
        retry_delays_seconds: the waits between the attempts to send a batch. A longer ``Retry-After`` is obeyed, until
            ``retry_seconds`` are over.
        retry_seconds: the last attempt begins at most this long after the first.
    """

    def __init__(
        self,
        url: str,
        resource: Mapping[str, str],
        retry_delays_seconds: tuple[float, ...] = RETRY_DELAYS_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._url, self._resource = url, resource
        self._retry_delays_seconds, self._retry_seconds = retry_delays_seconds, retry_seconds
        self._queue: asyncio.Queue[Span] = asyncio.Queue(MAX_WAITING_SPANS)
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def offer(self, spans: Iterable[Span]) -> None:
        """Queue ``spans``. Returns at once; what does not fit is dropped."""
        for span in spans:
            try:
                self._queue.put_nowait(span)
            except asyncio.QueueFull:
                metrics.ROLL_TRACE_SPANS.labels("dropped").inc()

    def start(self) -> None:
        """Send from now on."""
        self._task = asyncio.create_task(self._run(), name="roll-traces")
        self._task.add_done_callback(_log_unexpected_end)

    async def stop(self) -> None:
        """Send what waits, for at most :data:`STOP_SECONDS`."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._queue.join()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        metrics.ROLL_TRACE_SPANS.labels("dropped").inc(self._queue.qsize())

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                batch = [await self._queue.get()]
                while len(batch) < MAX_BATCH_SPANS and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                try:
                    await self._send(session, batch)
                except Exception:  # the task's outermost loop: without it, one bad span would end all traces
                    metrics.ROLL_TRACE_SPANS.labels("dropped").inc(len(batch))
                    log.exception("%d spans were not sent to the collector", len(batch))
                except asyncio.CancelledError:
                    metrics.ROLL_TRACE_SPANS.labels("dropped").inc(len(batch))
                    raise
                finally:
                    for _ in batch:
                        self._queue.task_done()

    async def _send(self, session: aiohttp.ClientSession, batch: list[Span]) -> None:
        """Send ``batch``, with retries, and count its spans as sent or dropped."""
        body = request_body(batch, self._resource, _SCOPE)
        deadline = time.monotonic() + self._retry_seconds
        attempt = await self._post(session, body, len(batch))
        for delay_seconds in self._retry_delays_seconds:
            left_seconds = deadline - time.monotonic()
            if attempt.retry_after_seconds is None or left_seconds <= 0:
                break
            await asyncio.sleep(min(max(delay_seconds, attempt.retry_after_seconds), left_seconds))
            attempt = await self._post(session, body, len(batch))
        metrics.ROLL_TRACE_SPANS.labels("sent").inc(len(batch) - attempt.rejected)
        metrics.ROLL_TRACE_SPANS.labels("dropped").inc(attempt.rejected)
        if attempt.rejected and not self._failing:
            log.warning("the collector at %s does not take spans, they are dropped: %s", self._url, attempt.problem)
        elif self._failing and not attempt.rejected:
            log.info("the collector at %s takes spans again", self._url)
        self._failing = attempt.rejected > 0

    async def _post(self, session: aiohttp.ClientSession, body: bytes, spans: int) -> _Attempt:
        """One attempt to send ``spans`` spans."""
        headers = {"Content-Type": CONTENT_TYPE}
        try:
            # aiohttp writes a stream in pieces. A large body at once would hold up everything else of the event loop.
            async with session.post(
                self._url, data=io.BytesIO(body), headers=headers, allow_redirects=False
            ) as response:
                if response.status == 200:
                    rejected = rejected_spans(await _beginning(response.content))
                    return _Attempt(min(max(rejected, 0), spans), "it rejected a part")
                wait = retry_after_seconds(response.headers.get("Retry-After", ""), datetime.now(UTC))
                may_retry = response.status in _RETRYABLE
                return _Attempt(spans, f"HTTP status {response.status}", wait if may_retry else None)
        except TimeoutError:
            return _Attempt(spans, f"no answer in {TIMEOUT_SECONDS:.0f} s", 0.0)
        except aiohttp.ClientError as error:
            return _Attempt(spans, str(error) or type(error).__name__, 0.0)


def retry_after_seconds(header: str, now: datetime) -> float:
    """The seconds that a ``Retry-After`` header asks to wait: a number, or a date. 0 for one that is neither."""
    text = header.strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    # A date whose zone is "-0000" has none, and means UTC (RFC 5322).
    return max((date if date.tzinfo else date.replace(tzinfo=UTC)) - now, timedelta(0)).total_seconds()


async def _beginning(body: aiohttp.StreamReader) -> bytes:
    """The first :data:`MAX_ANSWER_BYTES` of a body."""
    data = bytearray()
    while len(data) < MAX_ANSWER_BYTES and (chunk := await body.read(MAX_ANSWER_BYTES - len(data))):
        data += chunk
    return bytes(data)


def exporter_of(config: OperatorConfig) -> SpanExporter | None:
    """The exporter of this process, or None when no collector is configured."""
    if not config.tracing_endpoint:
        return None
    resource = {
        "service.name": OPERATOR_NAME,
        "service.version": version("aurora-operator"),
        "service.instance.id": config.pod_name,
        "k8s.namespace.name": config.operator_namespace,
    }
    present = {name: value for name, value in resource.items() if value}
    for outcome in ("sent", "dropped"):
        metrics.ROLL_TRACE_SPANS.labels(outcome)
    return SpanExporter(f"{config.tracing_endpoint}/v1/traces", present)


def _log_unexpected_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the export of traces ended unexpectedly, further spans are dropped", exc_info=error)
