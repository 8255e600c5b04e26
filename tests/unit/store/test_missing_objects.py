"""An object is missing only when the store says so. A gateway before the store answers 404 too, as a fake one shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import ObjectMissing, StoreError
from tests.assets.faulty_store import FaultyStore, faulty_store, whole

KEY = "registry/00000001.json"
HTML = b"<html><body><h1>404 Not Found</h1></body></html>"
GATEWAYS = {
    "text": whole(404, b"404 page not found\n", Content_Type="text/plain"),
    "html": whole(404, HTML, Content_Type="text/html"),
    "torn html": whole(404, b"<html><br></html>", Content_Type="text/html"),
    "no body": whole(404),
    "json": whole(404, b'{"error":"no Route matched with those values"}', Content_Type="application/json"),
    "xml": whole(404, b"<?xml version='1.0'?><Error><Code>NotFound</Code></Error>"),
}
"""Answers of gateways that have no route to the store at the moment."""
CALLS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "get": lambda objects, _: objects.get(KEY),
    "range": lambda objects, _: objects.get_range(KEY, 0, 10),
    "download": lambda objects, folder: objects.download(KEY, folder / "x", "0" * 64, max_bytes=10),
    "put": lambda objects, _: objects.put(KEY, b"1"),
    "create": lambda objects, _: objects.create(KEY, b"1"),
    "delete": lambda objects, _: objects.delete(KEY),
    "list": lambda objects, _: list(objects.list("registry/")),
}


@pytest.fixture
def fake_gateway() -> Iterator[FaultyStore]:
    with faulty_store(GATEWAYS["text"]) as fake:
        yield fake


def objects(store: FaultyStore) -> ObjectStore:
    return ObjectStore(StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret"), attempts=1)


def s3_error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_gateway_that_has_no_route_to_the_store_is_not_taken_for_a_missing_object(
    fake_gateway: FaultyStore, tmp_path: Path, gateway: str, call: str
) -> None:
    fake_gateway.answer = GATEWAYS[gateway]
    with pytest.raises(StoreError, match=r"HTTP 404, but no code of S3; check store\.endpoint") as error:
        CALLS[call](objects(fake_gateway), tmp_path)
    assert type(error.value) is StoreError


@pytest.mark.parametrize("call", ["get", "range", "download"])
@pytest.mark.parametrize("code", ["NoSuchKey", "NoSuchVersion"])
def test_an_object_is_missing_when_s3_says_so(fake_gateway: FaultyStore, tmp_path: Path, code: str, call: str) -> None:
    fake_gateway.answer = whole(404, s3_error(code))
    with pytest.raises(ObjectMissing):
        CALLS[call](objects(fake_gateway), tmp_path)


def test_a_missing_bucket_is_not_a_missing_object(fake_gateway: FaultyStore) -> None:
    fake_gateway.answer = whole(404, s3_error("NoSuchBucket"))
    with pytest.raises(StoreError, match="NoSuchBucket; create the bucket") as error:
        objects(fake_gateway).get(KEY)
    assert type(error.value) is StoreError


def test_a_bucket_is_created_after_a_bare_404_because_an_answer_to_head_has_no_body(fake_gateway: FaultyStore) -> None:
    fake_gateway.answer = lambda request: request.reply(404 if request.command == "HEAD" else 200)
    objects(fake_gateway).ensure_bucket()
    assert [request.split()[0] for request in fake_gateway.requests] == ["HEAD", "PUT"]
