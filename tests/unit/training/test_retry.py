"""Retries outlast outages and end on request."""

from __future__ import annotations

import pytest

from aurora_runtime.errors import Interrupted
from aurora_runtime.training.retry import Retrier
from aurora_store.errors import StoreError


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
