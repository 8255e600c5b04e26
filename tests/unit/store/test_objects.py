"""Faults that a real store cannot be made to show, from a fake on loopback: each is a short error in bounded time."""

from __future__ import annotations

import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from aurora_store import ObjectStore, StoreConfig
from aurora_store import objects as objects_module
from aurora_store.errors import MAX_ERROR_CHARACTERS, ObjectTooLarge, StoreError, StoreInterrupted, StoreOverdue
from aurora_store.objects import MAX_RECORD_BYTES
from aurora_store.s3_calls.call_limits import INTERRUPT_POLL_SECONDS, interruptible, total_deadline
from tests.assets.faulty_store import (
    Answer,
    FaultyStore,
    Request,
    drip_body,
    drip_headers,
    endless_body,
    faulty_store,
    hang,
    whole,
)

CALL_SECONDS = 1.0
MARGIN_SECONDS = 2.0
"""botocore waits up to one second before the retry that the deadline forbids."""
XML = "<?xml version='1.0'?>"


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(hang) as fake:
        yield fake


def objects(store: FaultyStore, *, attempts: int = 2, call_seconds: float = CALL_SECONDS) -> ObjectStore:
    config = StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret")
    return ObjectStore(config, attempts=attempts, call_seconds=call_seconds)


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


@pytest.mark.parametrize("answer", [drip_headers, drip_body, hang], ids=["headers", "body", "nothing"])
@pytest.mark.parametrize("call", ["get", "list", "create"])
def test_a_store_that_drips_or_hangs_holds_no_call_beyond_its_deadline(
    store: FaultyStore, call: str, answer: Answer
) -> None:
    store.answer = answer
    began = time.monotonic()
    with pytest.raises(StoreOverdue, match="no complete answer within 1 s"):
        CALLS[call](objects(store))
    assert time.monotonic() - began < CALL_SECONDS + MARGIN_SECONDS


def test_a_large_upload_ends_at_its_deadline_when_a_part_hangs(
    store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Request) -> None:
        if request.command == "POST":
            request.reply(200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")
        else:
            hang(request)

    store.answer = answer
    monkeypatch.setattr(objects_module, "TRANSFER", TransferConfig(multipart_threshold=1 << 20, use_threads=False))
    monkeypatch.setattr(objects_module, "MIN_BYTES_PER_SECOND", 1 << 40)
    file = tmp_path / "large"
    file.write_bytes(bytes(6 << 20))
    began = time.monotonic()
    with pytest.raises(StoreOverdue, match="no complete answer within 1 s"):
        objects(store).upload("x", file)
    assert time.monotonic() - began < CALL_SECONDS + MARGIN_SECONDS
    assert any("partNumber" in request for request in store.requests)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that boto3 trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_the_limits_hold_with_tls(tls: ssl.SSLContext) -> None:
    with faulty_store(whole(200, b"record"), tls=tls) as store:
        assert objects(store, call_seconds=60).get("x") == b"record"
        for answer in (drip_headers, drip_body):
            store.answer = answer
            began = time.monotonic()
            with pytest.raises(StoreOverdue):
                objects(store).get("x")
            assert time.monotonic() - began < CALL_SECONDS + MARGIN_SECONDS
        store.answer = endless_body(200)
        with pytest.raises(ObjectTooLarge):
            objects(store, call_seconds=60).get("x")


def test_a_total_deadline_ends_several_calls_together(store: FaultyStore) -> None:
    def slow(request: Request) -> None:
        time.sleep(0.4)
        request.reply(200, b"{}")

    store.answer = slow
    opened, read = objects(store), list[bytes]()

    def read_all() -> None:
        with total_deadline(1.0):
            for _ in range(10):
                read.append(opened.get("x"))

    began = time.monotonic()
    with pytest.raises(StoreOverdue):
        read_all()
    assert 1 <= len(read) <= 2
    assert time.monotonic() - began < 1.0 + MARGIN_SECONDS


@pytest.mark.parametrize("status", [200, 403, 500])
@pytest.mark.parametrize("call", ["get", "list", "create"])
def test_an_endless_answer_is_not_read_into_memory(store: FaultyStore, call: str, status: int) -> None:
    store.answer = endless_body(status)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="more than"):
            CALLS[call](objects(store, call_seconds=60))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20


def test_a_record_above_its_limit_is_refused_before_it_is_read(store: FaultyStore) -> None:
    store.answer = whole(200, b"a" * (MAX_RECORD_BYTES + 1))
    with pytest.raises(ObjectTooLarge, match=f"more than {MAX_RECORD_BYTES} bytes"):
        objects(store, call_seconds=60).get("channel/00000001.json")
    store.answer = whole(200, b"a" * MAX_RECORD_BYTES)
    assert len(objects(store, call_seconds=60).get("channel/00000001.json")) == MAX_RECORD_BYTES


def test_a_download_stops_at_the_size_that_its_manifest_names(store: FaultyStore, tmp_path: Path) -> None:
    store.answer = endless_body(200)
    with pytest.raises(ObjectTooLarge):
        objects(store, call_seconds=60).download("weights", tmp_path / "weights", "0" * 64, max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("call", ["get", "list", "create", "head"])
def test_a_redirect_is_an_error_in_words(store: FaultyStore, call: str, status: int) -> None:
    store.answer = whole(status, Location="http://169.254.169.254/")
    with pytest.raises(StoreError, match=rf"answered with a redirect \(HTTP {status}\)"):
        CALLS[call](objects(store, call_seconds=60))
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
    text = error_text(lambda: CALLS[call](objects(store, attempts=1, call_seconds=60)))
    assert len(text) <= MAX_ERROR_CHARACTERS
    assert "Evil text" not in text


@pytest.mark.parametrize("code", ["internal.example.svc", "Forbidden2", "AccessDeniedToAdminUserRoot"])
def test_a_code_that_s3_does_not_define_is_not_repeated(store: FaultyStore, code: str) -> None:
    store.answer = whole(403, f"{XML}<Error><Code>{code}</Code><Message>m</Message></Error>".encode())
    text = error_text(lambda: objects(store, attempts=1).get("key"))
    assert code not in text
    assert "HTTP 403" in text


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
            list(objects(store, call_seconds=60).list("registry/", limit=500))


def test_a_range_is_asked_for_and_no_more_is_read(store: FaultyStore) -> None:
    asked: list[str | None] = []

    def answer(request: Request) -> None:
        asked.append(request.headers.get("Range"))
        request.reply(206, b"x" * 20)

    store.answer = answer
    assert objects(store, call_seconds=60).get_range("traces/x", 100, 20) == b"x" * 20
    with pytest.raises(ObjectTooLarge):
        objects(store, call_seconds=60).get_range("traces/x", 0, 19)
    assert asked == ["bytes=100-119", "bytes=0-18"]


def test_a_range_beyond_the_objects_end_is_empty(store: FaultyStore) -> None:
    """S3 refuses such a range. The object may be empty, or cut short."""
    body = b"<Error><Code>InvalidRange</Code><Message>The requested range is not satisfiable</Message></Error>"
    store.answer = whole(416, body)
    assert objects(store).get_range("traces/x", 0, 20) == b""
    store.answer = whole(500, body)
    with pytest.raises(StoreError):
        objects(store, attempts=1).get_range("traces/x", 0, 20)


def test_a_range_of_no_bytes_is_not_asked_for(store: FaultyStore) -> None:
    """S3 would ignore the range and send the whole object."""
    assert objects(store).get_range("traces/x", 5, 0) == b""
    assert store.requests == []


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [("http://minio_svc:9000", None), ("http://[::1", None), ("nonsense", None), ("http://127.0.0.1:1", "eu central")],
)
def test_settings_that_boto3_refuses_are_a_store_error(endpoint: str, region: str | None) -> None:
    with pytest.raises(StoreError):
        ObjectStore(StoreConfig("bucket", "root", endpoint, region, "access", "secret"), attempts=1).get("x")


@pytest.mark.parametrize("answer", [drip_headers, drip_body, hang], ids=["headers", "body", "nothing"])
def test_a_download_that_nobody_wants_any_more_ends_soon(store: FaultyStore, tmp_path: Path, answer: Answer) -> None:
    store.answer = answer
    given_up = threading.Event()
    threading.Timer(0.3, given_up.set).start()
    began = time.monotonic()
    with interruptible(given_up.is_set), pytest.raises(StoreInterrupted, match="nobody waits"):
        objects(store, call_seconds=60).download("x", tmp_path / "x", "0" * 64, max_bytes=100_000)
    assert time.monotonic() - began < 0.3 + INTERRUPT_POLL_SECONDS + MARGIN_SECONDS
    assert list(tmp_path.iterdir()) == []


def test_a_download_stops_at_the_declared_size(store: FaultyStore, tmp_path: Path) -> None:
    store.answer = endless_body(200)
    sent_before = time.monotonic()
    tracemalloc.start()
    with pytest.raises(ObjectTooLarge, match="more than 1000 bytes"):
        objects(store, call_seconds=60).download("x", tmp_path / "x", "0" * 64, max_bytes=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - sent_before < 10
    assert peak < 16 << 20
    assert list(tmp_path.iterdir()) == []
