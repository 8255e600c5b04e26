"""A real OTLP/HTTP receiver in this process. It decodes what the OpenTelemetry collector decodes, and nothing else.

A request of another form gets the status that the protocol demands, so that a test of the exporter fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

FIELDS = {
    "traceId",
    "spanId",
    "parentSpanId",
    "name",
    "kind",
    "startTimeUnixNano",
    "endTimeUnixNano",
    "attributes",
    "status",
}


@dataclass(frozen=True)
class ReceivedSpan:
    """One decoded span. ``parent_id`` is empty for a root; times are nanoseconds since 1970."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    name: str
    start: int
    end: int
    attributes: Mapping[str, str | int | float]
    error: str


@dataclass
class OtlpReceiver:
    """Answers with ``statuses``, one after the other, and then with 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    retry_after: Callable[[], str] | None = None
    """Makes the header ``Retry-After`` of each answer with one of ``statuses``."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """The body of an answer with status 200."""
    requests: int = 0
    arrivals: list[float] = field(default_factory=list)
    """When each request arrived, in seconds of the monotonic clock."""
    bodies: list[bytes] = field(default_factory=list)
    """The accepted requests."""
    resource: Mapping[str, str | int | float] = field(default_factory=dict)
    spans: list[ReceivedSpan] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.arrivals.append(time.monotonic())
        if self.statuses:
            headers = {} if self.retry_after is None else {"Retry-After": self.retry_after()}
            return web.Response(status=self.statuses.pop(0), headers=headers)
        if request.content_type != "application/json":
            return web.Response(status=415)
        body = await request.read()
        try:
            self._take(json.loads(body, parse_constant=_refuse))
        except (ValueError, KeyError, TypeError) as error:
            return web.Response(status=400, text=str(error))
        self.bodies.append(body)
        return web.json_response(self.answer)

    def _take(self, message: Any) -> None:
        (resource_spans,) = message["resourceSpans"]
        self.resource = _attributes(resource_spans["resource"]["attributes"])
        (scope_spans,) = resource_spans["scopeSpans"]
        self.spans += [_span(span) for span in scope_spans["spans"]]


@asynccontextmanager
async def receiving() -> AsyncIterator[OtlpReceiver]:
    """A receiver on a free port of this machine."""
    receiver = OtlpReceiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        await runner.cleanup()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _span(span: dict[str, Any]) -> ReceivedSpan:
    if unknown := span.keys() - FIELDS:
        raise ValueError(f"unknown fields {unknown}")
    if span["kind"] != 1:
        raise ValueError("not an internal span")
    status = span.get("status", {"code": 2, "message": ""})
    if status["code"] != 2:
        raise ValueError("only errors have a status")
    return ReceivedSpan(
        trace_id=_id(span["traceId"], 16),
        span_id=_id(span["spanId"], 8),
        parent_id=_id(span["parentSpanId"], 8) if "parentSpanId" in span else b"",
        name=span["name"],
        start=_uint64(span["startTimeUnixNano"]),
        end=_uint64(span["endTimeUnixNano"]),
        attributes=_attributes(span["attributes"]),
        error=status["message"],
    )


def _id(text: str, size: int) -> bytes:
    found = bytes.fromhex(text)
    if len(found) != size or not any(found):
        raise ValueError(f"{text} is not an id of {size} bytes")
    return found


def _uint64(text: Any) -> int:
    if not isinstance(text, str) or not 0 <= int(text) < 2**64:
        raise ValueError(f"{text!r} is not a 64-bit integer in JSON")
    return int(text)


def _int64(text: Any) -> int:
    if not isinstance(text, str) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text!r} is not a signed 64-bit integer in JSON")  # as a number it would lose digits
    return int(text)


def _attributes(written: list[dict[str, Any]]) -> dict[str, str | int | float]:
    return {attribute["key"]: _value(**attribute["value"]) for attribute in written}


def _value(
    *, stringValue: str | None = None, intValue: str | None = None, doubleValue: float | None = None
) -> str | int | float:
    if intValue is not None:
        return _int64(intValue)
    if doubleValue is not None:
        return float(doubleValue)
    return str.strip(stringValue)  # type: ignore[arg-type]
