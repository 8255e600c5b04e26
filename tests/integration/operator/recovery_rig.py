"""One speculator on a root of a real S3: the operator's store reader and plan, and the pods' fenced store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.metadata import Owner
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.store.store_reader import StoreNeeds, StoreReader
from aurora_operator.plan import Plan, plan
from aurora_protocol.draft_records import Channel
from aurora_protocol.signatures import KeyName
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import FencedObjectStore, ObjectStore
from aurora_store.keys import owner_id
from aurora_store.root_deletion import RootDeletion
from aurora_store.root_ownership import MAX_AGE_SECONDS
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import record_keys
from tests.unit.operator.worlds import (
    CONFIG,
    MINIMAL,
    channel,
    evidence,
    lineage,
    observed,
    registration,
    root_owner,
    spec,
)

OLD = Owner("blue", "chat", "01d00000-0000", 1, "1")
NEW = Owner("green", "chat", "4e300000-0000", 1, "1", adopts=True)
THIRD = Owner("red", "chat", "33330000-0000", 1, "1", adopts=True)


def keys_of(owner: Owner) -> dict[KeyName, bytes]:
    """The signing keys of a speculator. Each has others."""
    return {name: f"the {name.value} of {owner.namespace}".encode() for name in KeyName}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        ObjectStore(server.config()).ensure_bucket()
        yield server


@pytest.fixture
def root(s3: S3, request: pytest.FixtureRequest) -> str:
    """A root of the test's own, which the speculator :data:`OLD` owns."""
    return root_of_old(s3, request.node.name)


def root_of_old(s3: S3, namespace: str) -> str:
    """The root of the old speculator, with versions 0 to 2 of which 1 is active."""
    name = f"aurora/{namespace.replace('_', '-')[:60].rstrip('-')}/chat"
    registry = PodRegistry(ObjectStore(s3.config(root=name)), keys_of(OLD))
    registry.create_lineage(lineage().model_copy(update={"draft_vocab_size": 16}))
    for version in range(3):
        registry.register(registration(version))
    registry.put_evidence(evidence(1))
    registry.advance_channel(channel(0, owner=root_owner(OLD)))
    registry.advance_channel(channel(1, epoch=2, previous=0, owner=root_owner(OLD)))
    return name


class Speculator:
    """The operator and the pods of one speculator. ``plan`` and ``advance`` are apart, so that others come between."""

    def __init__(self, s3: S3, owner: Owner, root: str) -> None:
        self.owner, self.root = owner, root
        config = s3.config(root=root)
        self.clock_seconds, self.status = 0.0, SpeculatorStatus()
        self.reader = StoreReader(config, record_keys(owner, keys=keys_of(owner)))
        self.pods = FencedObjectStore(replace(config, owner=owner_id(owner.uid)), clock=lambda: self.clock_seconds)
        self.registry = PodRegistry(self.pods, keys_of(owner))
        self.deletion = RootDeletion(config, owner_id(owner.uid))

    def view(self) -> StoreView:
        return self.reader.read(StoreNeeds())

    def plan(self, **parts: Any) -> Plan:
        store: dict[str, Any] = MINIMAL["store"] | {"path": self.root.partition("/")[2]}
        given = spec(store=store, draft={"vocabSize": 256}, **parts)
        world = observed(owner=self.owner, spec=given, store=self.view(), status=self.status)
        return plan(world, CONFIG, datetime.now(UTC))

    def look(self, **parts: Any) -> Plan:
        """One reconcile, as far as the store is concerned."""
        made = self.plan(**parts)
        if made.advance is not None:
            self.reader.advance(made.advance)
        self.status = made.status or self.status
        return made

    def storage_reason(self) -> str:
        status = self.plan().status or self.status
        return next(c.reason for c in status.conditions if c.type == "StorageReady")

    def later(self) -> None:
        self.clock_seconds += MAX_AGE_SECONDS

    def newest_channel(self) -> Channel:
        found = self.registry.channel()
        assert found is not None
        return found
