"""How the operator opens a store, when it reads, and which stores its administrator's policy keeps it from."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.metadata import keys_name
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.secret_values import SecretReader
from aurora_operator.observe.store import store_access
from aurora_operator.observe.store.store_access import StoreAccess, StoreCalls
from aurora_operator.observe.store.store_reader import StoreNeeds, store_needs
from aurora_store.errors import StoreError
from aurora_store.store_policy import StorePolicy, StoreRule
from tests.assets.faulty_store import FaultyStore, faulty_store, whole
from tests.assets.signing import secret_data
from tests.unit.operator.worlds import OWNER, spec, store

KEYS = {"secretRef": {"name": "s3"}}


class FakeApi:
    """Fake API server that has the Secrets with the keys of the store and of the speculator, and nothing else."""

    async def find(self, _kind: object, _namespace: str, name: str) -> dict[str, Any] | None:
        if name == keys_name(OWNER):
            metadata = {"resourceVersion": "1", "ownerReferences": [{"uid": OWNER.uid, "controller": True}]}
            return {"kind": "Secret", "metadata": metadata, "data": secret_data()}
        if name != "s3":
            return None
        data = {name: base64.b64encode(b"key") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        return {"kind": "Secret", "metadata": {"resourceVersion": "1"}, "data": data}


@pytest.fixture(name="server")
def _server() -> Iterator[FaultyStore]:
    with faulty_store(whole(403)) as fake:
        yield fake


async def view(policy: StorePolicy, **store: Any) -> StoreView:
    """What the operator sees of a store whose spec an author chose."""
    given = spec(store={"bucket": "bucket", "credentials": KEYS} | store)
    access = StoreAccess(SecretReader(cast(Any, FakeApi()), OWNER.namespace), policy)
    return await access.view(OWNER, given, store_needs(OWNER, given, SpeculatorStatus(), (), None))


async def test_an_allowed_store_is_asked(server: FaultyStore) -> None:
    assert (await view(StorePolicy(), endpoint=server.endpoint)).reason == "Unreachable"
    assert server.requests


async def test_a_link_local_endpoint_is_not_asked(server: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("169.254.169.254", 0))])
    assert (await view(StorePolicy(), endpoint=server.endpoint)).reason == "AddressRefused"
    assert server.requests == []


async def test_the_operator_never_signs_with_its_own_identity_for_an_authors_endpoint(
    server: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "operator")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "operator")
    seen = await view(StorePolicy(), endpoint=server.endpoint, credentials={"serviceAccountName": "cloud"})
    assert seen.reason == "KeysRequired"
    assert "sign with its own identity" in seen.error
    assert server.requests == []


async def test_a_store_that_no_rule_allows_is_not_asked(server: FaultyStore) -> None:
    rule = StoreRule((OWNER.namespace,), server.endpoint, "another-bucket")
    seen = await view(StorePolicy((rule,)), endpoint=server.endpoint)
    assert seen.reason == "StoreNotAllowed"
    assert "stores.allowed" in seen.error
    assert server.requests == []


class Reader:
    """Counts reads of a store that a test fills."""

    def __init__(self, *_: object) -> None:
        self.view, self.reads = StoreView(), 0

    def read(self, _: StoreNeeds) -> StoreView:
        self.reads += 1
        return self.view


class Schedule:
    """A store at a time that a test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reader, self.seconds, self.needs = Reader(), 1000.0, StoreNeeds()
        monkeypatch.setattr(store_access, "StoreReader", lambda *_: self.reader)
        monkeypatch.setattr("random.uniform", lambda low, _: low)
        secrets = SecretReader(cast(Any, FakeApi()), OWNER.namespace, lambda: self.seconds)
        self.access = StoreAccess(secrets, StorePolicy(), lambda: self.seconds)
        self.spec = spec(store={"bucket": "bucket", "credentials": KEYS})

    async def read_at(self, seconds: int) -> list[int]:
        """The seconds of the next ``seconds`` at which the store is read."""
        found = list[int]()
        for second in range(1, seconds + 1):
            self.seconds += 1
            before = self.reader.reads
            await self.access.view(OWNER, self.spec, self.needs)
            found += [second] if self.reader.reads > before else []
        return found


@pytest.fixture(name="schedule")
def _schedule(monkeypatch: pytest.MonkeyPatch) -> Schedule:
    return Schedule(monkeypatch)


async def test_the_pauses_between_reads_double_until_rest_and_a_change_begins_anew(schedule: Schedule) -> None:
    schedule.reader.view = store(0)
    assert await schedule.read_at(300) == [1, 3, 7, 15, 31, 61, 91, 121, 151, 181, 211, 241, 271]
    schedule.needs = replace(schedule.needs, moment=("another generation",))
    assert await schedule.read_at(10) == [1, 3, 7]
    schedule.reader.view = store(0, 1)
    assert (await schedule.read_at(100))[:3] == [5, 7, 11], "the read at 5 finds a new version"


async def test_faults_are_read_again_with_backoff_and_a_person_does_not_wait_for_it(schedule: Schedule) -> None:
    for reason in ("InvalidRecord", "Unreachable"):
        schedule.reader.view = StoreView(reason=reason, error="a fault")
        await schedule.read_at(600)
        assert len(await schedule.read_at(600)) == 20
    schedule.needs = replace(schedule.needs, pin=1)
    assert (await schedule.read_at(1)) == [1]


async def test_a_write_and_a_fence_are_a_reason_to_read(schedule: Schedule) -> None:
    schedule.reader.view = store(0)
    await schedule.read_at(300)
    schedule.access.read_next()
    assert schedule.access.seconds_until_due() == 0
    assert await schedule.read_at(1) == [1]


async def test_a_store_that_hangs_delays_an_observation_until_the_deadline_and_holds_one_thread() -> None:
    ended, calls = threading.Event(), StoreCalls()
    with pytest.raises(StoreError, match="no complete answer"):
        await calls.run(lambda: ended.wait(10), seconds=0.1)
    with pytest.raises(StoreError, match="an earlier call still waits"):
        await calls.run(lambda: 1)
    ended.set()
    await asyncio.sleep(0.2)
    assert await calls.run(lambda: 1) == 1


async def test_a_secret_of_another_owner_holds_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OWNER.__class__, "owns", lambda *_: False)
    assert (await view(StorePolicy())).reason == "SigningKeysMissing"
