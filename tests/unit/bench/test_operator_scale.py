"""The counting parts of the operator's bench: a wrong count would look like a good figure."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.bench.operator.__main__ import memory_slope_kilobytes
from tests.bench.operator.agent_stand_in import address
from tests.bench.operator.audit_log import READ_VERBS, WRITE_VERBS, Requests, count_requests
from tests.bench.operator.fleet import Speculator, Watched, is_ready, ready_replicas, speculators
from tests.bench.operator.measurements import percentile
from tests.bench.operator.operator_process import reconciled_speculators
from tests.bench.operator.store_proxy import content_length, operation

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


def event(verb: str, resource: str = "pods", *, stage: str = "ResponseComplete", second: int = 1) -> bytes:
    """One line of the audit log, received ``second`` seconds after the window began."""
    name, _, subresource = resource.partition("/")
    received = f"2026-01-01T00:00:{second:02d}.000000Z" if second >= 0 else "2025-12-31T23:59:59.000000Z"
    reference = {"resource": name, "subresource": subresource}
    return json.dumps(
        {"verb": verb, "stage": stage, "objectRef": reference, "requestReceivedTimestamp": received}
    ).encode()


def test_requests_are_counted_by_verb_and_resource() -> None:
    lines = [
        event("get"),
        event("list", second=-1),
        event("patch", "auroraspeculators/status"),
        event("watch", stage="ResponseStarted"),
        event("watch", stage="ResponseComplete"),
        event("update", "leases"),
        b'{"verb": "get", "sta',
    ]
    requests = Requests(count_requests(lines, STARTED))
    assert requests.by_verb == {
        "get pods": 1,
        "patch auroraspeculators/status": 1,
        "watch pods": 1,
        "update leases": 1,
    }
    assert (requests.count(READ_VERBS), requests.count(WRITE_VERBS), requests.election) == (1, 1, 1)


def test_a_request_without_a_resource_is_counted_by_its_path() -> None:
    line = json.loads(event("get"))
    del line["objectRef"]
    line["requestURI"] = "/apis?timeout=32s"
    assert count_requests([json.dumps(line).encode()], STARTED) == {"get /apis": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET /b/aurora/ns/chat-1/trainer/status.json HTTP/1.1", "GetObject trainer"),
        (b"GET /b?list-type=2&prefix=aurora%2Fns%2Fchat-1%2Fchannel%2F HTTP/1.1", "ListObjectsV2 channel"),
        (b"PUT /b/aurora/ns/chat-1/probe/0123 HTTP/1.1", "PutObject probe"),
        (b"HEAD /b HTTP/1.1", "HeadBucket"),
        (b"DELETE /b/aurora/ns/chat-1/probe/0123 HTTP/1.1", "DeleteObject probe"),
    ],
)
def test_store_calls_are_counted_by_operation_and_kind_of_record(line: bytes, expected: str) -> None:
    assert operation(line + b"\r\nHost: store\r\n\r\n") == expected


def test_the_proxy_passes_on_the_whole_body_and_refuses_a_chunked_one() -> None:
    assert content_length(b"PUT /k HTTP/1.1\r\nContent-Length: 12\r\n\r\n") == 12
    assert content_length(b"GET /k HTTP/1.1\r\nHost: store\r\n\r\n") == 0
    with pytest.raises(ValueError, match="chunked"):
        content_length(b"PUT /k HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")


def test_only_finished_reconciles_count() -> None:
    metrics = """
# TYPE aurora_reconciles_total counter
aurora_reconciles_total{name="a",namespace="x",outcome="done"} 3.0
aurora_reconciles_total{name="b",namespace="x",outcome="error"} 3.0
aurora_reconciles_total{name="c",namespace="x",outcome="done"} 0.0
"""
    assert reconciled_speculators(metrics) == {Speculator("x", "a")}


def test_percentiles_are_of_the_nearest_rank() -> None:
    ranked = [float(value) for value in range(1, 101)]
    assert (percentile(ranked, 0.5), percentile(ranked, 0.99), percentile(ranked, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.5) == 7.0


def test_the_slope_of_memory_is_in_kilobytes_of_a_thousand_bytes() -> None:
    rows = [{"speculators": n, "at_rest": {"memory_mebibytes": {"now": 100 + n}}} for n in (1, 100, 1000)]
    assert memory_slope_kilobytes(rows) == pytest.approx(1048.6)
    assert memory_slope_kilobytes(rows[:1]) is None


def test_ten_thousand_pods_have_addresses_of_their_own() -> None:
    addresses = {address(index) for index in range(70_000)}
    assert len(addresses) == 70_000
    assert all(each.startswith("127.") and not each.startswith("127.0.") for each in addresses)


def resource(**status: Any) -> dict[str, Any]:
    metadata = {"namespace": "bench-000", "name": "spec-0000", "generation": 2}
    return {"metadata": metadata, "status": status}


def test_a_speculator_is_ready_when_its_status_is_about_the_present_spec() -> None:
    conditions = [{"type": "Ready", "status": "True"}]
    assert is_ready(resource(observedGeneration=2, updated="3/3", conditions=conditions), 3)
    assert not is_ready(resource(observedGeneration=1, updated="3/3", conditions=conditions), 3)
    assert not is_ready(resource(observedGeneration=2, updated="2/3", conditions=conditions), 3)
    assert not is_ready(resource(observedGeneration=2, updated="3/3", conditions=[]), 3)
    assert not is_ready(None, 3)


async def test_a_change_is_timed_when_its_event_arrives() -> None:
    (key,) = speculators(1)
    watched = Watched()
    watched.handle("ADDED", resource(readyReplicas=1))
    waiting = asyncio.create_task(watched.until(key, ready_replicas(2), 5))
    await asyncio.sleep(0)
    before = asyncio.get_running_loop().time()
    watched.handle("MODIFIED", resource(readyReplicas=2))
    assert await waiting >= before
    with pytest.raises(TimeoutError):
        await watched.until(key, ready_replicas(3), 0.01)
