"""A Secret that works is read once; one that is missing or was refused is read again after growing delays."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest

from aurora_operator.errors import KubernetesError, NotFound
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.observe.secret_values import (
    MAX_DELAY_SECONDS,
    MAX_SUSPICION_SECONDS,
    MIN_DELAY_SECONDS,
    SecretReader,
    secret_value,
)


class Rig:
    """A fake API server and a clock that a test moves."""

    refusal: KubernetesError | None = None

    def __init__(self, secret: Object | None) -> None:
        self.secret, self.reads, self.now = secret, 0, 1000.0
        api: Any = self
        self.reader = SecretReader(api, "team", lambda: self.now)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self.reads += 1
        if self.refusal is not None:
            raise self.refusal
        if self.secret is None:
            raise NotFound(name, 404)
        return self.secret


def secret(revision: str) -> Object:
    return {"kind": "Secret", "metadata": {"name": "s3", "namespace": "team", "resourceVersion": revision}}


async def test_a_secret_that_works_is_read_once() -> None:
    rig = Rig(secret("1"))
    for _ in range(5):
        rig.now += 3600
        assert await rig.reader.find("s3") == rig.secret
    assert rig.reads == 1
    assert rig.reader.seconds_until_next_read == float("inf")


async def test_only_the_parts_of_a_secret_that_are_read_stay_in_memory() -> None:
    rig = Rig(secret("1") | {"data": {"key": "dmFsdWU="}})
    expected = copy.deepcopy(rig.secret)
    assert rig.secret is not None
    rig.secret["metadata"] |= {"managedFields": [{"manager": "helm"}], "annotations": {"applied": "dmFsdWU="}}
    found = await rig.reader.find("s3")
    assert found == expected
    assert found is not None
    assert secret_value(found, "key") == "value"


async def test_a_missing_secret_is_looked_for_after_growing_bounded_delays() -> None:
    rig, reads_at = Rig(None), list[float]()
    for _ in range(600):
        before = rig.reads
        assert await rig.reader.find("s3") is None
        if rig.reads > before:
            reads_at.append(rig.now)
        rig.now += 1
    gaps = [later - earlier for earlier, later in itertools.pairwise(reads_at)]
    assert gaps[:5] == [2, 4, 8, 16, 32]
    assert set(gaps[5:]) == {MAX_DELAY_SECONDS}
    rig.secret = secret("1")
    rig.now += MAX_DELAY_SECONDS
    assert await rig.reader.find("s3") == rig.secret


async def test_a_refused_value_is_read_again_at_once_and_then_rarely() -> None:
    rig = Rig(secret("1"))
    await rig.reader.find("s3")
    rig.now += 3600
    rig.reader.doubt("s3")
    assert rig.reader.seconds_until_next_read == 0
    await rig.reader.find("s3")
    assert rig.reads == 2
    for _ in range(120):
        rig.reader.doubt("s3")
        await rig.reader.find("s3")
        rig.now += 1
    assert rig.reads <= 2 + 6, "a peer that always refuses does not make us read all the time"
    rig.secret = secret("2")
    rig.now += MAX_DELAY_SECONDS
    rig.reader.doubt("s3")
    assert await rig.reader.find("s3") == rig.secret


async def test_a_secret_that_may_not_be_read_is_asked_for_after_growing_delays() -> None:
    rig = Rig(secret("1"))
    rig.refusal = KubernetesError("forbidden", 403)
    for _ in range(600):
        with pytest.raises(KubernetesError, match="forbidden"):
            await rig.reader.find("s3")
        rig.now += 1
    assert rig.reads <= 5 + 600 / MAX_DELAY_SECONDS + 1
    rig.refusal = None
    rig.now += MAX_DELAY_SECONDS
    assert await rig.reader.find("s3") == rig.secret


async def test_an_api_server_that_is_away_is_no_refusal() -> None:
    rig = Rig(secret("1"))
    rig.refusal = KubernetesError("no connection")
    for _ in range(2):
        with pytest.raises(KubernetesError):
            await rig.reader.find("s3")
    assert rig.reads == 2


async def test_a_suspicion_that_lasts_reads_ever_more_rarely_and_a_refused_value_does_not_wait_for_it() -> None:
    rig = Rig(secret("1"))
    for _ in range(4 * 3600):
        rig.reader.suspect("s3")
        await rig.reader.find("s3")
        rig.now += 1
    assert rig.reads <= 10 + 4 * 3600 / MAX_SUSPICION_SECONDS
    rig.reader.doubt("s3")
    assert rig.reader.seconds_until_next_read <= MAX_DELAY_SECONDS


async def test_a_missing_secret_that_nobody_asks_for_any_more_is_not_due() -> None:
    """It would bring a reconcile every two seconds for ever, and none of them would read it."""
    rig = Rig(None)
    assert await rig.reader.find("another") is None
    rig.reader.drop_unasked()
    assert rig.reader.seconds_until_next_read == MIN_DELAY_SECONDS, "the last observation asked for it"
    rig.now += 3600
    assert await rig.reader.find("s3") is None
    rig.reader.drop_unasked()
    assert rig.reader.seconds_until_next_read == MIN_DELAY_SECONDS


async def test_a_changed_spec_reads_at_once() -> None:
    rig = Rig(secret("1"))
    await rig.reader.find("s3")
    rig.reader.forget()
    await rig.reader.find("s3")
    assert rig.reads == 2


def test_a_value_that_is_no_text_counts_as_missing() -> None:
    assert secret_value({"data": {"key": "/w=="}}, "key") == ""
    assert secret_value({"data": {"key": "c2VjcmV0"}}, "key") == "secret"
    assert secret_value({"data": None}, "key") == ""
