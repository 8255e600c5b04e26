"""Writes spans as OTLP/HTTP expects them in JSON. Pure.

Source: the OpenTelemetry protocol 1.x, https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding: ids are
hexadecimal, 64-bit integers are decimal strings, enums are integers, and names are lowerCamelCase.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aurora_operator.roll_traces.span import AttributeValue, Span, nanoseconds

CONTENT_TYPE: Final = "application/json"
_KIND_INTERNAL, _STATUS_ERROR = 1, 2


def request_body(spans: Iterable[Span], resource: Mapping[str, AttributeValue], scope: str) -> bytes:
    """The body of one export: ``resource`` names the process, ``scope`` the code that made the spans."""
    scope_spans = [{"scope": {"name": scope}, "spans": [_span(span) for span in spans]}]
    message = {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": scope_spans}]}
    return json.dumps(message, allow_nan=False).encode()


def rejected_spans(answer: bytes) -> int:
    """How many spans the collector rejected, by its ``answer`` with status 200. An answer of another form: none."""
    try:
        return int(json.loads(answer)["partialSuccess"]["rejectedSpans"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0


def _span(span: Span) -> dict[str, Any]:
    written: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _KIND_INTERNAL,
        "startTimeUnixNano": str(nanoseconds(span.start)),
        "endTimeUnixNano": str(nanoseconds(span.end)),
        "attributes": _attributes(span.attributes),
    }
    if span.parent_id:
        written["parentSpanId"] = span.parent_id
    if span.error:
        written["status"] = {"code": _STATUS_ERROR, "message": span.error}
    return written


def _attributes(attributes: Mapping[str, AttributeValue]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in attributes.items()]


def _value(value: AttributeValue) -> dict[str, str | float]:
    if isinstance(value, str):
        return {"stringValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}
