"""Sends spans to an OpenTelemetry collector over OTLP/HTTP.

Invariants: :meth:`SpanExporter.offer` never waits, and nothing else of the operator waits for the collector. What the
queue cannot hold, and what the collector does not take within the retries, is dropped and counted. A span or an answer
that nobody thought of costs its batch and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
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
STOP_SECONDS: Final = 2.0
"""How long a stopping operator goes on sending. The Lease is released before."""
MAX_ANSWER_BYTES: Final = 65536
_RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""Source: the OTLP specification, "Retryable Response Codes". Its header ``Retry-After`` is not read."""
_SCOPE: Final = "aurora_operator.roll_traces"


class SpanExporter:
    """The queue of finished spans, and the task that sends them.

    Args:
        url: the collector's path for traces, ending with ``/v1/traces``.
        resource: attributes of this process.
        retry_delays_seconds: the waits between the attempts to send a batch.
    """

    def __init__(
        self, url: str, resource: Mapping[str, str], retry_delays_seconds: tuple[float, ...] = RETRY_DELAYS_SECONDS
    ) -> None:
        self._url, self._resource, self._retry_delays_seconds = url, resource, retry_delays_seconds
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
        rejected, problem = len(batch), ""
        for delay_seconds in (*self._retry_delays_seconds, None):
            rejected, problem, may_retry = await self._post(session, body, len(batch))
            if not may_retry or delay_seconds is None:
                break
            await asyncio.sleep(delay_seconds)
        metrics.ROLL_TRACE_SPANS.labels("sent").inc(len(batch) - rejected)
        metrics.ROLL_TRACE_SPANS.labels("dropped").inc(rejected)
        if rejected and not self._failing:
            log.warning("the collector at %s does not take spans, they are dropped: %s", self._url, problem)
        elif self._failing and not rejected:
            log.info("the collector at %s takes spans again", self._url)
        self._failing = rejected > 0

    async def _post(self, session: aiohttp.ClientSession, body: bytes, spans: int) -> tuple[int, str, bool]:
        """One attempt. Returns the number of spans that were not taken, why, and whether to try again."""
        headers = {"Content-Type": CONTENT_TYPE}
        try:
            async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                if response.status == 200:
                    rejected = rejected_spans(await _beginning(response.content))
                    return min(max(rejected, 0), spans), "it rejected a part", False
                return spans, f"HTTP status {response.status}", response.status in _RETRYABLE
        except TimeoutError:
            return spans, f"no answer in {TIMEOUT_SECONDS:.0f} s", True
        except aiohttp.ClientError as error:
            return spans, str(error) or type(error).__name__, True


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
