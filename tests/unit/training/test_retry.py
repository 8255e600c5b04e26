"""Retries outlast outages and end on request."""

from __future__ import annotations

import pytest

from aurora_runtime.errors import Interrupted
from aurora_runtime.training.retry import Retrier
from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import StoreError
from tests.assets.faulty_store import Request, faulty_store, whole


def test_a_retry_outlasts_an_outage_and_ends_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_runtime.training.retry.INITIAL_BACKOFF_SECONDS", 0.001)
    retrier = Retrier()
    outages = iter(range(2))

    def flaky() -> int:
        if next(outages, None) is not None:
            raise StoreError("down")
        return 7

    failures = list[str]()
    assert retrier.call("testing", flaky, failures.append) == 7
    assert failures == ["testing failed: down"] * 2

    def down() -> int:
        retrier.stop()
        raise StoreError("down")

    with pytest.raises(Interrupted):
        retrier.call("testing", down)


def test_a_read_waits_until_a_gateway_has_its_route_to_the_store_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_runtime.training.retry.INITIAL_BACKOFF_SECONDS", 0.001)
    with faulty_store(whole(200, b"record")) as fake_gateway:
        there = fake_gateway.answer

        def answer(request: Request) -> None:
            reloads = len(fake_gateway.requests) < 3
            (whole(404, b"404 page not found\n", Content_Type="text/plain") if reloads else there)(request)

        fake_gateway.answer = answer
        config = StoreConfig("bucket", "root", fake_gateway.endpoint, "us-east-1", "access", "secret")
        store = ObjectStore(config, attempts=1)
        assert Retrier().call("reading", lambda: store.get("registry/00000001.json")) == b"record"
        assert len(fake_gateway.requests) == 3
