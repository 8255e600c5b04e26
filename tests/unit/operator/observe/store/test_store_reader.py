"""Which records the operator reads, when and how often, and what it believes when somebody deletes or adds some."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aurora_api.v1alpha1.status import (
    CandidatePhase,
    CandidateStatus,
    PreviousVersion,
    RolloutPhase,
    RolloutStatus,
    SpeculatorStatus,
    VersionStatus,
)
from aurora_operator.observe.observed import JobView, StoreView
from aurora_operator.observe.store.store_reader import StoreNeeds, StoreReader, store_needs
from aurora_protocol.draft_records import RootOwner
from aurora_store import Registry, StoreConfig
from aurora_store.keys import Keys
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_RECORD_BYTES, ObjectInfo
from tests.assets.signing import KEYS, record_keys
from tests.unit.operator.worlds import (
    NOW,
    OWNER,
    channel,
    digest,
    evidence,
    lineage,
    registration,
    root_owner,
    spec,
    trainer_record,
)
from tests.unit.training.tiny import MemoryObjects

ALL = StoreNeeds(versions=frozenset({0, 1, 2, 3, 4}))


class Objects(MemoryObjects):
    """Objects in a dictionary, with the calls by which the operator opens a store."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        self.requests.append(f"get {key}")
        return super().get(key, sha256, max_bytes=max_bytes)

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        self.requests.append(f"list {prefix}")
        return super().list_objects(prefix, after=after, limit=limit)

    def probe(self) -> None:
        self.requests.append("probe")

    def ensure_bucket(self) -> None:
        """A dictionary is there."""


class Store:
    """Versions 0 to 3 of which 2 is active and 0 is previous, and the one reader that an operator keeps."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.registry = Registry(self.objects, KEYS)
        config = StoreConfig("bucket", self.objects.config.root, None, "region", "access", "secret")
        self.reader = StoreReader(config, record_keys(OWNER), objects=self.objects)
        self.write(0, 1, 2, 3)
        self.reader.advance(channel(0))
        self.reader.advance(channel(2, epoch=2, previous=0))

    def write(self, *versions: int, digests: int = 0) -> None:
        """What the trainer registers. ``digests`` tells one lineage's drafts from another's."""
        self.registry.create_lineage(lineage())
        for version in versions:
            self.registry.register(registration(version).model_copy(update={"digest": digest(version + digests)}))

    def read(self, needs: StoreNeeds = ALL) -> StoreView:
        self.objects.requests.clear()
        view = self.reader.read(needs)
        assert view.ok, view.error
        return view

    def attempts(self, needs: StoreNeeds = ALL) -> list[tuple[int, int]]:
        return [(one.version, one.attempt) for one in self.read(needs).evidence]


@pytest.fixture(name="store")
def _store() -> Store:
    return Store()


def test_a_read_at_rest_makes_five_requests_and_reads_no_record_again(store: Store) -> None:
    for version in (2, 3):
        store.registry.put_evidence(evidence(version))
    first = store.read()
    assert store.read() == first
    assert store.objects.requests == [
        "list channel/",
        "list registry/",
        "list expired/",
        "get trainer/status.json",
        "list evidence/",
    ]


def test_a_root_that_was_written_before_is_probed_before_the_next_write_only(store: Store) -> None:
    new_leader = StoreReader(store.reader.config, store.reader._keys, objects=store.objects)
    store.objects.requests.clear()
    assert new_leader.read(StoreNeeds(has_channel=True)).channel is not None
    assert "probe" not in store.objects.requests
    for epoch in (3, 4):
        new_leader.advance(channel(2, epoch=epoch))
    assert store.objects.requests.count("probe") == 1


def test_evidence_of_a_version_older_than_the_active_one_is_read_for_who_asks(store: Store) -> None:
    for version in (1, 2, 3):
        store.registry.put_evidence(evidence(version))
    store.registry.put_evidence(evidence(3, attempt=1500))
    assert store.attempts(StoreNeeds()) == [(2, 1), (3, 1), (3, 1500)]
    assert store.attempts(StoreNeeds(versions=frozenset({1}))) == [(1, 1), (2, 1), (3, 1), (3, 1500)]


def test_a_foreign_record_of_a_version_that_nobody_needs_is_left_alone(store: Store) -> None:
    store.objects.put("evidence/00000001/zzz.json", b"{}")
    assert store.read(StoreNeeds()).ok


def test_a_store_that_is_emptied_and_filled_again_is_believed_anew(store: Store) -> None:
    assert store.read().registrations[1].digest == digest(1)
    backup = dict(store.objects.data)
    store.objects.data.clear()
    store.write(0, digests=7)
    view = store.read()
    assert view.channel is None
    assert {version: one.digest for version, one in view.registrations.items()} == {0: digest(7)}
    store.objects.data.update(backup)
    view = store.read()
    assert view.channel is not None
    assert (view.channel.epoch, view.channel.active) == (2, 2)


@pytest.mark.parametrize("version", [0, 2])
def test_a_registration_that_the_channel_names_is_missed_until_it_comes_back(store: Store, version: int) -> None:
    missing = store.objects.data.pop(Keys.registration(version))
    assert version not in store.read().registrations
    store.objects.data[Keys.registration(version)] = missing
    assert version in store.read().registrations


def test_a_record_of_another_owner_is_passed_on_without_its_weights_and_forgotten_once_it_is_deleted(
    store: Store,
) -> None:
    thief = RootOwner(id="99999999", namespace="x", name="y", since=NOW)
    forged = channel(1, epoch=3).model_copy(update={"owner": thief, "active_digest": digest(9)})
    store.objects.put(Keys.channel(3), forged.to_json())
    view = store.read()
    assert view.channel is not None
    assert (view.channel.owner, view.channel.active_digest) == (thief, None)
    del store.objects.data[Keys.channel(3)]
    view = store.read()
    assert view.channel is not None
    assert (view.channel.epoch, view.channel.owner) == (2, root_owner())


def test_the_records_of_a_root_that_lies_inside_this_one_are_not_read(store: Store) -> None:
    """The author of another speculator chose this root, and a folder of it, as prefix."""
    before = store.read()
    for folder in (Keys.CHANNEL, Keys.REGISTRY, Keys.evidence_of(3)):
        for name in ("00000099.json", "notes.json"):
            store.objects.put(f"{folder}x/y/{name}", b"{}")
    assert store.read() == before


def test_the_trainers_record_is_cut_to_what_a_status_holds_and_a_damaged_one_stops_nothing(store: Store) -> None:
    store.registry.put_trainer_status(trainer_record(message="a\n" * 100_000))
    found = store.read().trainer
    assert found is not None
    assert (len(found.message), found.message[:5]) == (1000, "a a a")
    store.objects.put(Keys.TRAINER_STATUS, b"{}")
    view = store.read()
    assert view.trainer is None


def needs(status: SpeculatorStatus, *jobs: JobView, abort: int | None = None, pin: int | None = None) -> StoreNeeds:
    rollout = {} if pin is None else {"rollout": {"pin": pin}}
    return store_needs(OWNER, spec(**rollout), status, jobs, abort)


def test_versions_are_those_of_the_status_and_those_that_a_person_asks_for() -> None:
    status = SpeculatorStatus(active=VersionStatus(version=4), previous=PreviousVersion(version=2))
    assert needs(status, abort=8, pin=1).versions == {1, 2, 4, 8}


def test_the_store_is_read_once_the_job_of_the_present_attempt_ended() -> None:
    measuring = SpeculatorStatus(candidate=CandidateStatus(version=3, phase=CandidatePhase.VALIDATING, attempt=2))
    running, ended = JobView("j", 3, 2), JobView("j", 3, 2, failed=True)
    former = JobView("j", 3, 1, succeeded=True)
    assert needs(measuring, running, former) == needs(measuring, running)
    assert needs(measuring, ended, former) != needs(measuring, running, former)


def test_the_store_is_read_at_each_step_of_a_roll_and_for_each_request_of_a_person() -> None:
    rolling = RolloutStatus(phase=RolloutPhase.ROLLING, version=1, updated=1, epoch=3)
    steps = [needs(SpeculatorStatus(rollout=rolling.model_copy(update={"updated": done}))) for done in (1, 1, 2)]
    assert steps[0] == steps[1] != steps[2]
    assert needs(SpeculatorStatus()) != needs(SpeculatorStatus(), abort=1)
