"""A reader notices that the channel was deleted, or put back, and then believes nothing that it read before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.observe.observed import StoreView, UserRequests
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_operator.observe.store.store_reader import StoreReader
from aurora_operator.observe.store.store_schedule import ReadScope, StoreNeeds
from aurora_operator.plan import Plan
from aurora_protocol.draft_records import RootOwner
from aurora_store import Registry, StoreConfig
from aurora_store.errors import StoreError
from aurora_store.keys import Keys, first_owner
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_RECORD_BYTES, ObjectInfo
from tests.unit.operator.worlds import NOW, channel, digest, lineage, made, observed, pod, registration
from tests.unit.training.tiny import MemoryObjects


class Objects(MemoryObjects):
    """Objects in a dictionary, with the calls by which the operator opens a store."""

    away = False
    asked: list[str] | None = None
    """Reads since a test set it."""

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        if self.asked is not None:
            self.asked.append("get")
        return super().get(key, sha256, max_bytes=max_bytes)

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        if self.asked is not None:
            self.asked.append("list")
        return super().list_objects(prefix, after=after, limit=limit)

    def probe(self) -> None:
        if self.away:
            raise StoreError("no route")

    def ensure_bucket(self) -> None:
        """A dictionary is there."""


class Store:
    """A store, and the one reader that an operator keeps."""

    def __init__(self) -> None:
        self.objects = Objects()
        config = StoreConfig("bucket", self.objects.config.root, None, "region", "access", "secret")
        self.reader = StoreReader(config, RecordKeys(first_owner(config.root), b"k" * 64, ""), objects=self.objects)
        self.write(0, 1)
        for epoch, active in ((1, 0), (2, 1)):
            self.reader.advance(channel(active, epoch=epoch))

    def write(self, *versions: int, digests: int = 0) -> None:
        """What the trainer registers. ``digests`` tells one lineage's drafts from another's."""
        registry = Registry(self.objects)
        registry.create_lineage(lineage())
        for version in versions:
            registry.register(registration(version).model_copy(update={"digest": digest(version + digests)}))

    def read(self, scope: ReadScope = ReadScope.ALL) -> StoreView:
        view = self.reader.read(StoreNeeds(), scope)
        assert view.ok, view.error
        return view


@pytest.fixture(name="store")
def _store() -> Store:
    return Store()


def test_a_channel_that_is_deleted_is_noticed_and_other_drafts_take_the_numbers(store: Store) -> None:
    assert store.read().registrations[1].digest == digest(1)
    store.objects.data.clear()
    store.write(0, digests=7)
    view = store.read(ReadScope.CHANNEL)
    assert view.channel is None
    assert {version: one.digest for version, one in view.registrations.items()} == {0: digest(7)}


def test_the_same_after_a_fault_of_the_store(store: Store) -> None:
    store.read()
    store.objects.data.clear()
    store.objects.away = True
    store.reader._forget_state()
    assert store.reader.read(StoreNeeds(), ReadScope.ALL).reason == "Unreachable"
    store.objects.away = False
    store.write(0, digests=7)
    view = store.read()
    assert (view.channel, view.registrations[0].digest) == (None, digest(7))


def test_records_that_are_put_back_replace_those_of_another_lineage(store: Store) -> None:
    store.read()
    backup = dict(store.objects.data)
    store.objects.data.clear()
    store.write(0, digests=7)
    assert store.read().registrations[0].digest == digest(7)
    store.objects.data.update(backup)
    view = store.read()
    assert view.channel is not None
    assert (view.channel.epoch, view.channel.active) == (2, 1)
    assert {version: one.digest for version, one in view.registrations.items()} == {1: digest(1)}


def test_a_newest_record_that_is_deleted_alone_stays_known(store: Store) -> None:
    store.read()
    del store.objects.data[Keys.channel(2)]
    view = store.read()
    assert view.channel is not None
    assert view.channel.epoch == 2


@pytest.mark.parametrize("version", [0, 1])
def test_a_registration_that_the_channel_names_is_missed_until_it_comes_back(store: Store, version: int) -> None:
    store.reader.advance(channel(1, epoch=3, previous=0))
    key = Keys.registration(version)
    missing = store.objects.data.pop(key)
    assert version not in store.read().registrations
    asked = store.objects.asked = []
    store.read(ReadScope.TRAINER)
    assert key not in store.reader._records
    assert asked == ["get"], "only the trainer's record"
    store.objects.data[key] = missing
    assert version in store.read(ReadScope.CHANNEL).registrations


def test_a_record_of_another_owner_is_read_once_and_forgotten_once_it_is_deleted(store: Store) -> None:
    store.read()
    thief = RootOwner(id="99999999", namespace="x", name="y", since=NOW)
    foreign = channel(1, epoch=3).model_copy(update={"owner": thief})
    store.objects.put(Keys.channel(3), foreign.to_json())
    for _ in range(3):
        view = store.read(ReadScope.CHANNEL)
        assert view.channel is not None
        assert view.channel.owner == thief
    asked: list[str] = []
    store.objects.asked = asked
    store.read(ReadScope.CHANNEL)
    assert asked == ["list"], "it starts after the last known record, and reads nothing again"
    del store.objects.data[Keys.channel(3)]
    view = store.read(ReadScope.CHANNEL)
    assert view.channel is not None
    assert (view.channel.epoch, view.channel.owner) == (2, None)


def test_the_first_record_of_a_channel_makes_nothing_unknown(store: Store) -> None:
    store.objects.data = {key: data for key, data in store.objects.data.items() if not key.startswith(Keys.CHANNEL)}
    assert store.read().channel is None
    store.reader.advance(channel(0))
    known = dict(store.reader._records)
    view = store.read()
    assert view.channel is not None
    assert store.reader._records == known


def test_the_whole_way_from_a_loss_over_a_persons_confirmation_to_a_new_lineage(store: Store) -> None:
    """The reader and the planner together, each plan made from the status of the former one."""
    serving, status = observed(pods=(pod("chat-a", 1), pod("chat-b", 1))), SpeculatorStatus()

    def reconcile(start_over: tuple[int, int] | None = None) -> Plan:
        nonlocal status
        plan = made(
            replace(serving, store=store.read(), status=status, user_requests=UserRequests(start_over=start_over))
        )
        if plan.advance is not None:
            store.reader.advance(plan.advance)
        status = plan.status or status
        return plan

    reconcile()
    assert status.active is not None
    assert status.active.version == 1
    store.objects.data.clear()
    store.write(0, digests=7)
    for _ in range(3):
        assert (reconcile().swaps, status.active.version) == ((), 1)
    assert list(store.objects.list(Keys.CHANNEL)) == []
    confirmed = (1, status.rollout.epoch)
    reconcile(start_over=confirmed)
    assert status.active is None
    first = reconcile(start_over=confirmed).advance
    assert first is not None
    assert (first.epoch, first.active, first.active_digest) == (1, 0, digest(7))
    swaps = reconcile(start_over=confirmed).swaps
    assert {(swap.request.version, swap.request.digest) for swap in swaps} == {(0, digest(7))}
    assert [entry.event for entry in status.history] == ["StartedOver"], "once"
