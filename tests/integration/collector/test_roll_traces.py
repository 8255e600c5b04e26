"""A real OpenTelemetry collector takes the operator's traces as it should, and its refusals cost spans alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aurora_operator.roll_traces import span_exporter
from aurora_operator.roll_traces.span import MAX_TEXT_CHARACTERS, Span, nanoseconds
from aurora_operator.roll_traces.span_exporter import MAX_BATCH_SPANS, SpanExporter, exporter_of
from tests.cluster.command import wait_until
from tests.rig.collector.server import Collector, collector
from tests.unit.operator.roll_traces.otlp_receiver import ReceivedSpan
from tests.unit.operator.roll_traces.test_span_exporter import counted
from tests.unit.operator.roll_traces.traced_life import life
from tests.unit.operator.worlds import CONFIG, NOW

DELIVERY_SECONDS = 60.0
PARENTS = {
    "offer": {""},
    "measurement": {"offer"},
    "rounds": {"measurement"},
    "rollout": {"offer"},
    "canary": {"rollout"},
    "rolling": {"rollout"},
    "watching": {"rollout"},
    "rolling back": {"offer"},
    "swap": {"canary", "rolling", "rolling back"},
    "decision": {"offer"},
}
"""The table of ``docs/how-to/monitoring.md``, without pauses."""


@asynccontextmanager
async def exporting(to: Collector) -> AsyncIterator[SpanExporter]:
    """The exporter of an operator whose chart names this collector."""
    exporter = exporter_of(replace(CONFIG, tracing_endpoint=to.url, pod_name="operator-0"))
    assert exporter is not None
    exporter.start()
    try:
        yield exporter
    finally:
        await exporter.stop()


async def wait_until_sent(exporter: SpanExporter) -> None:
    async with asyncio.timeout(DELIVERY_SECONDS):
        await exporter._queue.join()


def received(by: Collector, spans: int) -> list[ReceivedSpan]:
    """The spans that the collector wrote. Waits until there are at least ``spans``."""

    def found() -> list[ReceivedSpan]:
        return [_span(one) for request in by.requests() for one in _spans(request)]

    wait_until(f"{spans} spans", lambda: len(found()) >= spans, DELIVERY_SECONDS, lambda: str(found())[:2000])
    return found()


def expected(span: Span) -> ReceivedSpan:
    return ReceivedSpan(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_id=bytes.fromhex(span.parent_id),
        name=span.name,
        start=nanoseconds(span.start),
        end=nanoseconds(span.end),
        attributes=span.attributes,
        error=span.error,
    )


def one_span(number: int = 1, **changes: Any) -> Span:
    return replace(Span("a" * 32, f"{number:016x}", "", "offer", NOW, NOW + timedelta(seconds=1)), **changes)


@pytest.mark.parametrize("kind", ["good", "bad"])
async def test_the_collector_understands_each_span_of_a_roll_as_the_documentation_tells(
    tmp_path: Path, kind: str
) -> None:
    version = life(kind=kind)
    version.live(40)
    before = counted("sent"), counted("dropped")
    with collector(tmp_path) as running:
        async with exporting(running) as exporter:
            exporter.offer(version.spans)
            await wait_until_sent(exporter)
        spans = received(running, len(version.spans))
        (request,) = running.requests()
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (len(version.spans), 0)
    assert spans == [expected(span) for span in version.spans]
    for got, sent in zip(spans, version.spans, strict=True):
        assert _types(got.attributes) == _types(sent.attributes)
    _assert_documented(spans, rolls_back=kind == "bad")
    (process,) = request["resourceSpans"]
    resource = _attributes(process["resource"]["attributes"])
    assert resource.pop("service.version")
    assert resource == {
        "service.name": "aurora-operator",
        "service.instance.id": "operator-0",
        "k8s.namespace.name": CONFIG.operator_namespace,
    }
    assert [one["scope"]["name"] for one in process["scopeSpans"]] == ["aurora_operator.roll_traces"]


def _assert_documented(spans: Sequence[ReceivedSpan], *, rolls_back: bool) -> None:
    names = {span.span_id: span.name for span in spans} | {b"": ""}
    assert {span.name for span in spans} >= {"offer", "measurement", "rounds", "rollout", "canary", "swap", "decision"}
    assert ("rolling back" in names.values()) is rolls_back
    for span in spans:
        assert names[span.parent_id] in PARENTS[span.name]
        assert {"aurora.speculator", "aurora.version"} <= span.attributes.keys()
    assert {span.name for span in spans if span.error} == ({"rollout"} if rolls_back else set())


@pytest.mark.parametrize("character", ["\N{ROCKET}", "\x00", "\u2028", '"'])
async def test_the_largest_batch_of_the_longest_texts_arrives_whole(tmp_path: Path, character: str) -> None:
    text = character * MAX_TEXT_CHARACTERS
    batch = [one_span(number, attributes={"aurora.reason": text}, error=text) for number in range(1, 257)]
    assert len(batch) == MAX_BATCH_SPANS
    with collector(tmp_path) as running:
        async with exporting(running) as exporter:
            exporter.offer(batch)
            await wait_until_sent(exporter)
        assert received(running, len(batch)) == [expected(span) for span in batch]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"attributes": {"number": 2**63 - 1, "least": -(2**63)}}, id="integers"),
        pytest.param({"attributes": {"large": 1.7e308, "small": 5e-324, "tenth": 0.1, "whole": 2.0}}, id="fractions"),
        pytest.param({"attributes": {"empty": ""}, "name": ""}, id="empty texts"),
        pytest.param(
            {"start": datetime(1, 1, 1, tzinfo=UTC), "end": datetime(9999, 12, 31, tzinfo=UTC)}, id="foreign clocks"
        ),
    ],
)
async def test_the_limits_of_the_protocol_arrive_unchanged(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    span = one_span(**changes)
    with collector(tmp_path) as running:
        async with exporting(running) as exporter:
            exporter.offer([span])
            await wait_until_sent(exporter)
        (got,) = received(running, 1)
    assert got == expected(span)
    assert _types(got.attributes) == _types(span.attributes)


async def test_a_span_that_the_collector_cannot_read_is_dropped_at_once_and_later_ones_arrive(tmp_path: Path) -> None:
    before = counted("sent"), counted("dropped")
    good = one_span()
    with collector(tmp_path) as running:
        async with exporting(running) as exporter:
            exporter._retry_delays_seconds = (2 * DELIVERY_SECONDS,)  # to send it again would take too long
            exporter.offer([one_span(trace_id="no hexadecimal digits")])
            await wait_until_sent(exporter)
            exporter.offer([good])
            await wait_until_sent(exporter)
        assert received(running, 1) == [expected(good)]
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (1, 1)


async def test_a_collector_that_asks_for_credentials_gets_no_spans_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator has no credentials of a collector."""
    before = counted("sent"), counted("dropped")
    with collector(tmp_path, "only for tests") as running:
        async with exporting(running) as exporter:
            exporter.offer([one_span()])
            await wait_until_sent(exporter)
        assert running.requests() == []
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (0, 1)
    assert "HTTP status 401" in caplog.text


async def test_spans_wait_for_a_collector_that_restarts_and_arrive_once(tmp_path: Path) -> None:
    """The exporter keeps its connection, so the first attempt may meet one that the collector has closed."""
    before = counted("sent"), counted("dropped")
    spans = [one_span(number) for number in range(1, 4)]
    with collector(tmp_path) as running:
        async with exporting(running) as exporter:
            exporter.offer(spans[:1])
            await wait_until_sent(exporter)
            running.stop()
            exporter.offer(spans[1:2])
            await asyncio.sleep(0.5)
            await asyncio.to_thread(running.start)
            await wait_until_sent(exporter)
            running.stop()
            running.start()
            exporter.offer(spans[2:])
            await wait_until_sent(exporter)
        assert received(running, 3) == [expected(span) for span in spans]
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (3, 0)


async def test_spans_wait_for_a_collector_without_memory_and_arrive_once(tmp_path: Path) -> None:
    before = counted("sent"), counted("dropped")
    running = Collector(tmp_path)
    try:
        running.start(full=True)
        async with exporting(running) as exporter:
            exporter.offer([one_span()])
            await asyncio.sleep(0.5)
            assert running.requests() == []
            assert (counted("sent"), counted("dropped")) == before, "it waits"
            running.stop()
            await asyncio.to_thread(running.start)
            await wait_until_sent(exporter)
        assert received(running, 1) == [expected(one_span())]
    finally:
        running.stop()
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (1, 0)


async def test_a_collector_that_answers_too_late_may_have_a_span_twice_with_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_exporter, "TIMEOUT_SECONDS", 1.0)
    before = counted("sent"), counted("dropped")
    with collector(tmp_path) as running:
        async with exporting(running) as exporter:
            with running.frozen():
                exporter.offer([one_span()])
                await asyncio.sleep(1.5)
            await wait_until_sent(exporter)
        spans = received(running, 1)
    assert spans in ([expected(one_span())], [expected(one_span())] * 2)
    assert (counted("sent") - before[0], counted("dropped") - before[1]) == (1, 0)


# the collector's JSON ------------------------------------------------------------------------------------------------


def _spans(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [span for process in request["resourceSpans"] for scope in process["scopeSpans"] for span in scope["spans"]]


def _span(written: Mapping[str, Any]) -> ReceivedSpan:
    status = written.get("status", {})
    assert written["kind"] == 1, "not an internal span"
    assert status.get("code", 0) == (2 if status.get("message") else 0)
    return ReceivedSpan(
        trace_id=bytes.fromhex(written["traceId"]),
        span_id=bytes.fromhex(written["spanId"]),
        parent_id=bytes.fromhex(written.get("parentSpanId", "")),
        name=written.get("name", ""),
        start=int(written.get("startTimeUnixNano", "0")),
        end=int(written["endTimeUnixNano"]),
        attributes=_attributes(written.get("attributes", [])),
        error=status.get("message", ""),
    )


def _attributes(written: Sequence[Mapping[str, Any]]) -> dict[str, str | int | float]:
    return {attribute["key"]: _value(**attribute["value"]) for attribute in written}


def _value(*, stringValue: str = "", intValue: str = "", doubleValue: float | None = None) -> str | int | float:
    if intValue:
        return int(intValue)
    return stringValue if doubleValue is None else float(doubleValue)


def _types(attributes: Mapping[str, str | int | float]) -> dict[str, type]:
    return {name: type(value) for name, value in attributes.items()}
