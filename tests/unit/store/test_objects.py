"""Faults that a real store cannot be made to show, from a fake on loopback: each is a short error in bounded time."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_store import ObjectStore, StoreConfig, s3_client
from aurora_store import objects as objects_module
from aurora_store.deadline import interruptible, total_deadline
from aurora_store.errors import (
    MAX_ERROR_CHARACTERS,
    AddressRefused,
    ObjectExists,
    ObjectTooLarge,
    StoreError,
    StoreInterrupted,
)
from aurora_store.objects import MAX_RECORD_BYTES
from tests.assets.faulty_store import Answer, FaultyStore, Request, endless_body, faulty_store, hang, whole

TIMEOUT_SECONDS = 0.5
XML = "<?xml version='1.0'?>"
CONFLICT = f"{XML}<Error><Code>ConditionalRequestConflict</Code></Error>".encode()


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(hang) as fake:
        yield fake


def objects(store: FaultyStore, *, attempts: int = 1, timeout_seconds: float = 20.0) -> ObjectStore:
    """By default a store that answers has time to do so on a machine that others use too."""
    config = StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret")
    return ObjectStore(config, attempts=attempts, timeout_seconds=timeout_seconds)


def error_text(call: Callable[[], object]) -> str:
    """The error of ``call``; empty when it succeeds."""
    try:
        call()
    except StoreError as error:
        return str(error)
    return ""


CALLS: dict[str, Callable[[ObjectStore], object]] = {
    "get": lambda objects: objects.get("registry/00000001.json"),
    "list": lambda objects: list(objects.list("registry/")),
    "put": lambda objects: objects.put("x", b"1"),
    "create": lambda objects: objects.create("x", b"1"),
    "delete": lambda objects: objects.delete("x"),
    "head": lambda objects: objects.ensure_bucket(),
    "probe": lambda objects: objects.probe(),
}


@pytest.mark.parametrize("call", ["get", "list", "create"])
def test_a_store_that_hangs_is_given_up_after_the_timeout_of_each_attempt(store: FaultyStore, call: str) -> None:
    began = time.monotonic()
    with pytest.raises(StoreError, match=f"check that {store.endpoint} answers"):
        CALLS[call](objects(store, attempts=2, timeout_seconds=TIMEOUT_SECONDS))
    assert time.monotonic() - began < 2 * TIMEOUT_SECONDS + 5
    assert len(store.requests) == 2


def test_a_store_that_does_not_listen_is_an_error_that_names_it() -> None:
    config = StoreConfig("bucket", "root", "http://127.0.0.1:1", "us-east-1", "access", "secret")
    with pytest.raises(StoreError, match=r"get x: EndpointConnectionError; check that http://127\.0\.0\.1:1 answers"):
        ObjectStore(config, attempts=1).get("x")


def test_a_deadline_ends_several_calls_together_and_one_inside_does_not_extend_it(store: FaultyStore) -> None:
    def slow(request: Request) -> None:
        time.sleep(0.2)
        request.reply(200, b"{}")

    store.answer = slow
    opened, read = objects(store), list[bytes]()

    def read_all() -> None:
        with total_deadline(0.5), total_deadline(60):
            for _ in range(10):
                read.append(opened.get("x"))

    with pytest.raises(StoreInterrupted, match="no complete answer in time"):
        read_all()
    assert 1 <= len(read) <= 3


def test_a_store_that_sends_a_byte_now_and_then_does_not_hold_a_call_beyond_its_deadline(store: FaultyStore) -> None:
    def drip(request: Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not request.server.store.stopped.wait(0.05):
            request.wfile.write(b"a")

    store.answer = drip
    began = time.monotonic()
    with total_deadline(0.5), pytest.raises(StoreInterrupted, match="no complete answer in time"):
        objects(store).get("x")
    assert time.monotonic() - began < 5


def test_a_download_that_nobody_wants_any_more_ends_soon(store: FaultyStore, tmp_path: Path) -> None:
    store.answer = endless_body(200)
    given_up = threading.Event()
    threading.Timer(0.3, given_up.set).start()
    with interruptible(given_up.is_set), pytest.raises(StoreInterrupted, match="nobody waits"):
        objects(store).download("x", tmp_path / "x", "0" * 64, max_bytes=1 << 40)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [200, 403, 500])
@pytest.mark.parametrize("call", ["get", "list", "create"])
def test_an_endless_answer_is_not_read_into_memory(store: FaultyStore, call: str, status: int) -> None:
    store.answer = endless_body(status)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="more than"):
            CALLS[call](objects(store))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20


def test_a_create_that_meets_another_write_is_tried_again_with_its_whole_body(
    store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "CONFLICT_PAUSE_SECONDS", 0.0)
    bodies: list[bytes] = []

    def answer(request: Request) -> None:
        bodies.append(request.body)
        request.reply(409 if len(bodies) % 2 else 200, CONFLICT if len(bodies) % 2 else b"")

    store.answer = answer
    objects(store).create("x", b"record")
    (tmp_path / "file").write_bytes(b"record")
    objects(store).create_file("x", tmp_path / "file")
    assert bodies == [b"record"] * 4
    store.answer = whole(409, CONFLICT)
    with pytest.raises(StoreError, match="another write of the object was under way; try again") as raised:
        objects(store).create("x", b"record")
    assert not isinstance(raised.value, ObjectExists)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:169.254.1.1", "fd00:ec2::254"])
def test_an_endpoint_that_leads_to_a_link_local_address_is_not_opened(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 0))])
    config = StoreConfig("bucket", "root", store.endpoint, None, "access", "secret", refuses_link_local=True)
    with pytest.raises(AddressRefused):
        ObjectStore(config)
    assert store.requests == []


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "fd12::1", "93.184.216.34"])
def test_other_addresses_are_opened(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 0))])
    s3_client.refuse_link_local("http://minio:9000")


def test_a_record_above_its_limit_is_refused_before_it_is_read(store: FaultyStore) -> None:
    store.answer = whole(200, b"a" * (MAX_RECORD_BYTES + 1))
    with pytest.raises(ObjectTooLarge, match=f"more than {MAX_RECORD_BYTES} bytes"):
        objects(store).get("channel/00000001.json")
    store.answer = whole(200, b"a" * MAX_RECORD_BYTES)
    assert len(objects(store).get("channel/00000001.json")) == MAX_RECORD_BYTES


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("call", ["get", "list", "create", "head"])
def test_a_redirect_is_an_error_in_words(store: FaultyStore, call: str, status: int) -> None:
    store.answer = whole(status, Location="http://169.254.169.254/")
    with pytest.raises(StoreError, match=rf"answered with a redirect \(HTTP {status}\)"):
        CALLS[call](objects(store))
    assert len(store.requests) == 1, "nothing is tried again"


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize(
    "answer",
    [
        whole(200, b"a" * 2000),
        whole(200, f"{XML}<ListBucketResult><Contents><Size>many</Size></Contents></ListBucketResult>".encode()),
        whole(200, f"{XML}<ListBucketResult><Contents><Size>1</Size></Contents></ListBucketResult>".encode()),
        whole(200, f"{XML}<a><b/></a>".encode()),
        whole(400, b"<Error>" + b"a" * 42_000),
        whole(403, f"{XML}<Error><Code>{'Evil text ' * 4000}</Code><Message>m</Message></Error>".encode()),
        whole(404, b"nothing here"),
        whole(500, b"{}", Date="never", Retry_After="x"),
    ],
    ids=["text", "wrong size", "no key", "other xml", "42 kB", "long code", "404", "500"],
)
def test_no_answer_raises_anything_but_a_short_store_error(store: FaultyStore, call: str, answer: Answer) -> None:
    store.answer = answer
    text = error_text(lambda: CALLS[call](objects(store)))
    assert len(text) <= MAX_ERROR_CHARACTERS
    assert "Evil text" not in text


def test_a_listing_without_end_is_an_error(store: FaultyStore) -> None:
    page = (
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{0}</NextContinuationToken>{1}"
        "</ListBucketResult>"
    )
    item = (
        "<Contents><Key>root/registry/{0}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
        "</Contents>"
    )

    def pages(items: int) -> Answer:
        def answer(request: Request) -> None:
            number = len(store.requests)
            request.reply(200, (XML + page.format(number, item.format(number) * items)).encode())

        return answer

    for items in (0, 100):
        store.answer = pages(items)
        with pytest.raises(StoreError, match="more than 500 objects or 7 pages"):
            list(objects(store).list("registry/", limit=500))


def test_a_range_is_asked_for_and_no_more_is_read(store: FaultyStore) -> None:
    asked: list[str | None] = []

    def answer(request: Request) -> None:
        asked.append(request.headers.get("Range"))
        request.reply(206, b"x" * 20)

    store.answer = answer
    assert objects(store).get_range("traces/x", 100, 20) == b"x" * 20
    with pytest.raises(ObjectTooLarge):
        objects(store).get_range("traces/x", 0, 19)
    assert asked == ["bytes=100-119", "bytes=0-18"]


def test_a_range_beyond_the_objects_end_is_empty(store: FaultyStore) -> None:
    """S3 refuses such a range. The object may be empty, or cut short."""
    body = b"<Error><Code>InvalidRange</Code><Message>The requested range is not satisfiable</Message></Error>"
    store.answer = whole(416, body)
    assert objects(store).get_range("traces/x", 0, 20) == b""
    store.answer = whole(500, body)
    with pytest.raises(StoreError):
        objects(store).get_range("traces/x", 0, 20)


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [("http://minio_svc:9000", None), ("http://[::1", None), ("nonsense", None), ("http://127.0.0.1:1", "eu central")],
)
def test_settings_that_boto3_refuses_are_a_store_error(endpoint: str, region: str | None) -> None:
    with pytest.raises(StoreError):
        ObjectStore(StoreConfig("bucket", "root", endpoint, region, "access", "secret"), attempts=1).get("x")


def test_a_download_stops_at_the_declared_size(store: FaultyStore, tmp_path: Path) -> None:
    store.answer = endless_body(200)
    sent_before = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ObjectTooLarge, match="more than 1000 bytes"):
        objects(store).download("x", tmp_path / "x", "0" * 64, max_bytes=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - sent_before < 10
    assert peak < 16 << 20
    assert list(tmp_path.iterdir()) == []
