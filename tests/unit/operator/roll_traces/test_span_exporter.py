"""Spans reach a real OTLP/HTTP receiver, and a collector that is away costs spans and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from aurora_operator.roll_traces import span_exporter
from aurora_operator.roll_traces.otlp_json import rejected_spans
from aurora_operator.roll_traces.span import Span, nanoseconds
from aurora_operator.roll_traces.span_exporter import SpanExporter, exporter_of, retry_after_seconds
from tests.unit.operator.roll_traces.otlp_receiver import receiving
from tests.unit.operator.roll_traces.traced_life import life
from tests.unit.operator.worlds import CONFIG, NOW

AWAY = "http://127.0.0.1:9"
"""Nothing listens on the port of the discard protocol."""
SPAN = Span("a" * 32, "b" * 16, "", "offer", NOW, NOW + timedelta(seconds=1))


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("aurora_roll_trace_spans_total", {"outcome": outcome}) or 0.0


@asynccontextmanager
async def exporting(url: str, *, retries: int = 0, retry_seconds: float = 60.0) -> AsyncIterator[SpanExporter]:
    exporter = SpanExporter(f"{url}/v1/traces", {"service.name": "test"}, (0.01,) * retries, retry_seconds)
    exporter.start()
    try:
        yield exporter
    finally:
        await exporter.stop()


async def wait_until_sent(exporter: SpanExporter) -> None:
    async with asyncio.timeout(10):
        await exporter._queue.join()


async def test_a_roll_arrives_as_one_trace_with_its_reason() -> None:
    version = life(kind="bad")
    version.live(40)
    async with receiving() as receiver, exporting(receiver.url) as exporter:
        exporter.offer(version.spans)
        await wait_until_sent(exporter)
    assert len(receiver.spans) == len(version.spans)
    for sent, got in zip(version.spans, receiver.spans, strict=True):
        assert (got.trace_id.hex(), got.span_id.hex(), got.parent_id.hex()) == (
            sent.trace_id, sent.span_id, sent.parent_id)  # fmt: skip
        assert (got.name, got.start, got.end) == (sent.name, nanoseconds(sent.start), nanoseconds(sent.end))
        assert (got.attributes, got.error) == (dict(sent.attributes), sent.error)
    assert len({span.trace_id for span in receiver.spans}) == 1
    (rollout,) = [span for span in receiver.spans if span.name == "rollout"]
    assert "live traffic disagrees" in rollout.error


async def test_the_process_is_named_and_spans_need_an_endpoint() -> None:
    assert exporter_of(CONFIG) is None
    async with receiving() as receiver:
        exporter = exporter_of(replace(CONFIG, tracing_endpoint=receiver.url, pod_name="operator-0"))
        assert exporter is not None
        exporter.start()
        exporter.offer([SPAN])
        await wait_until_sent(exporter)
        await exporter.stop()
    named = {name: receiver.resource[name] for name in ("service.name", "service.instance.id", "k8s.namespace.name")}
    assert named == {
        "service.name": "aurora-operator",
        "service.instance.id": "operator-0",
        "k8s.namespace.name": CONFIG.operator_namespace,
    }


@pytest.mark.parametrize(("status", "requests", "sent"), [(503, 3, 1), (429, 3, 1), (400, 1, 0), (307, 1, 0)])
async def test_only_what_the_protocol_calls_retryable_is_sent_again(status: int, requests: int, sent: int) -> None:
    before = counted("sent"), counted("dropped")
    async with receiving() as receiver, exporting(receiver.url, retries=5) as exporter:
        receiver.statuses = [status, status] if sent else [status]
        exporter.offer([SPAN])
        await wait_until_sent(exporter)
        assert receiver.requests == requests
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (sent, 1 - sent)


def in_seconds(seconds: float) -> str:
    """The HTTP date that many seconds from now, rounded down to a whole second as each such date is."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [pytest.param(lambda: "1", 1.0, id="seconds"), pytest.param(lambda: in_seconds(2), 1.0, id="a date")],
)
async def test_the_next_attempt_waits_as_long_as_the_collector_asks(
    status: int, retry_after: Callable[[], str], seconds: float
) -> None:
    async with receiving() as receiver, exporting(receiver.url, retries=1) as exporter:
        receiver.statuses, receiver.retry_after = [status], retry_after
        exporter.offer([SPAN])
        await wait_until_sent(exporter)
        first, second = receiver.arrivals
        assert second - first >= seconds * 0.99
        assert len(receiver.spans) == 1


@pytest.mark.parametrize("retry_after", ["3600", "9" * 400, in_seconds(3600)], ids=["seconds", "digits", "date"])
async def test_a_collector_that_asks_for_too_long_a_wait_gets_a_last_attempt_at_the_deadline(retry_after: str) -> None:
    before = counted("dropped")
    async with receiving() as receiver, exporting(receiver.url, retries=5, retry_seconds=0.2) as exporter:
        receiver.statuses, receiver.retry_after = [503] * 9, lambda: retry_after
        exporter.offer([SPAN])
        await wait_until_sent(exporter)
        assert receiver.requests == 2
    assert counted("dropped") - before == 1


@pytest.mark.parametrize("status", [400, 307])
async def test_a_header_makes_no_refusal_retryable(status: int) -> None:
    async with receiving() as receiver, exporting(receiver.url, retries=5) as exporter:
        receiver.statuses, receiver.retry_after = [status], lambda: "0"
        exporter.offer([SPAN])
        await wait_until_sent(exporter)
        assert receiver.requests == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Thu, 01 Jan 2026 00:02:00 GMT", 120.0),
        ("Thu, 01 Jan 2026 00:02:00 -0000", 120.0),
        ("Thu, 01 Jan 2026 01:02:00 +0100", 120.0),
        ("Wed, 31 Dec 2025 23:59:00 GMT", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("\N{ARABIC-INDIC DIGIT SEVEN}", 0.0),
        ("soon", 0.0),
        ("Thu, 99 Foo 9999 99:99:99 GMT", 0.0),
        ("", 0.0),
    ],
)
def test_a_retry_after_is_a_number_or_a_date(header: str, seconds: float) -> None:
    assert retry_after_seconds(header, NOW) == seconds


@given(st.text(max_size=40))
def test_no_header_of_a_collector_is_an_error(header: str) -> None:
    assert retry_after_seconds(header, NOW) >= 0.0


async def test_spans_that_the_collector_rejects_are_counted_as_dropped() -> None:
    before = counted("sent"), counted("dropped")
    async with receiving() as receiver, exporting(receiver.url) as exporter:
        receiver.answer = {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "no room"}}
        exporter.offer([SPAN] * 3)
        await wait_until_sent(exporter)
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (1, 2)


@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"\xff", b'{"partialSuccess": {"rejectedSpans": "many"}}'])
def test_an_answer_of_another_form_rejects_nothing(answer: bytes) -> None:
    assert rejected_spans(answer) == 0


async def test_offers_never_wait_for_a_collector_that_is_away_and_what_does_not_fit_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(span_exporter, "STOP_SECONDS", 0.05)
    before = counted("dropped")
    exporter = SpanExporter(f"{AWAY}/v1/traces", {}, (60.0,))
    exporter.start()
    await asyncio.sleep(0.05)
    offered = span_exporter.MAX_WAITING_SPANS + 100
    started = time.monotonic()
    exporter.offer([SPAN] * offered)
    assert counted("dropped") - before == 100
    await exporter.stop()
    assert time.monotonic() - started < 5, "neither the offer nor the stop waits for the retries"


async def test_a_collector_that_comes_back_gets_later_spans(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger=span_exporter.__name__)
    async with receiving() as receiver, exporting(receiver.url) as exporter:
        receiver.statuses = [503, 503]
        for _ in range(3):
            exporter.offer([SPAN])
            await wait_until_sent(exporter)
        assert len(receiver.spans) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"], "an outage is one line in the log"


async def test_what_waits_is_sent_before_the_operator_stops() -> None:
    async with receiving() as receiver:
        exporter = SpanExporter(f"{receiver.url}/v1/traces", {})
        exporter.start()
        exporter.offer([SPAN] * 300)
        await exporter.stop()
        assert len(receiver.spans) == 300


async def test_the_receiver_refuses_what_is_not_otlp() -> None:
    """The decoder of these tests is of use only if it refuses."""
    async with receiving() as receiver, exporting(receiver.url) as exporter:
        exporter.offer([replace(SPAN, trace_id="ab")])
        await wait_until_sent(exporter)
        assert (receiver.requests, receiver.spans) == (1, [])


async def test_a_span_that_cannot_be_written_costs_no_other_batch() -> None:
    before = counted("dropped")
    async with receiving() as receiver, exporting(receiver.url) as exporter:
        exporter.offer([replace(SPAN, attributes={"aurora.swap.pause_seconds": float("nan")})])
        await wait_until_sent(exporter)
        exporter.offer([SPAN])
        await wait_until_sent(exporter)
        assert len(receiver.spans) == 1
    assert counted("dropped") - before == 1


@pytest.mark.parametrize("answer", [b'{"partialSuccess": {"rejectedSpans": 1e999}}', b"[" * 100_000, b"7"])
def test_an_odd_answer_of_the_collector_rejects_nothing(answer: bytes) -> None:
    assert rejected_spans(answer) == 0
