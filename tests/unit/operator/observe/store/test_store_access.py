"""The operator sends no request to a store that its administrator's policy refuses, and says why in words."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.errors import NotFound, NotLeading
from aurora_operator.io_pools import StorePools
from aurora_operator.observe.observed import StoreView, UserRequests
from aurora_operator.observe.secret_values import SecretReader
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_operator.observe.store.store_needs import store_needs
from aurora_store.policy.store_policy import StorePolicy, StoreRule
from tests.assets.faulty_store import FaultyStore, faulty_store, whole
from tests.assets.s3 import STORES_ON_THIS_MACHINE
from tests.unit.operator.worlds import OWNER, channel, spec

ON_THIS_MACHINE = StorePolicy.parse("", STORES_ON_THIS_MACHINE["AURORA_STORE_INTERNAL_HOSTS"])
KEYS = {"secretRef": {"name": "s3"}}


class FakeApi:
    """Fake API server that has the Secret with the store's keys, and nothing else."""

    def get(self, _kind: object, _namespace: str, name: str) -> dict[str, Any]:
        if name != "s3":
            raise NotFound(name, 404)
        data = {name: base64.b64encode(b"key") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        return {"kind": "Secret", "metadata": {"resourceVersion": "1"}, "data": data}


@pytest.fixture(name="store")
def _store() -> Iterator[FaultyStore]:
    with faulty_store(whole(403)) as fake:
        yield fake


async def view(policy: StorePolicy, **store: Any) -> StoreView:
    """What the operator sees of a store whose spec an author chose."""
    given = spec(store={"bucket": "bucket", "credentials": KEYS} | store)
    access = StoreAccess(SecretReader(cast(Any, FakeApi()), OWNER.namespace), policy, StorePools())
    return await access.view(OWNER, given, store_needs(OWNER, given, SpeculatorStatus(), (), UserRequests()))


async def test_a_process_that_lost_the_lease_while_it_waited_for_a_thread_writes_no_record() -> None:
    written: list[object] = []

    class Reader:
        advance = written.append

    def ensure_leading() -> None:
        assert threading.current_thread() is not threading.main_thread()
        raise NotLeading("no Lease")

    pools = StorePools()
    access = StoreAccess(SecretReader(cast(Any, FakeApi()), OWNER.namespace), ON_THIS_MACHINE, pools)
    access.reader, access._pool = cast(Any, Reader), pools.of("store")
    with pytest.raises(NotLeading):
        await access.advance(channel(0), ensure_leading)
    assert written == []


async def test_an_allowed_store_is_asked(store: FaultyStore) -> None:
    assert (await view(ON_THIS_MACHINE, endpoint=store.endpoint)).reason == "Unreachable"
    assert store.requests


async def test_an_endpoint_inside_the_cluster_is_not_asked_without_an_entry(store: FaultyStore) -> None:
    seen = await view(StorePolicy(), endpoint=store.endpoint)
    assert seen.reason == "AddressRefused"
    assert "stores.internalHosts" in seen.error
    assert store.requests == []


async def test_the_operator_never_signs_with_its_own_identity_for_an_authors_endpoint(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "operator")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "operator")
    seen = await view(ON_THIS_MACHINE, endpoint=store.endpoint, credentials={"serviceAccountName": "cloud"})
    assert seen.reason == "KeysRequired"
    assert "sign with its own identity" in seen.error
    assert store.requests == []


async def test_a_store_that_no_rule_allows_is_not_asked(store: FaultyStore) -> None:
    rule = StoreRule((OWNER.namespace,), store.endpoint, "another-bucket")
    seen = await view(replace(ON_THIS_MACHINE, rules=(rule,)), endpoint=store.endpoint)
    assert seen.reason == "StoreNotAllowed"
    assert "stores.allowed" in seen.error
    assert store.requests == []
