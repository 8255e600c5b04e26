"""Which evidence is read, and with how many requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aurora_operator.observe.store.evidence_reader import MAX_ATTEMPTS_LISTED, EvidenceReader
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_operator.observe.store.store_schedule import StoreNeeds
from aurora_protocol.draft_records import Channel
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.signatures import all_keys
from aurora_store import Keys, Registry
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_RECORD_BYTES, ObjectInfo
from tests.unit.operator.worlds import channel, evidence
from tests.unit.training.tiny import MemoryObjects

KEYS = RecordKeys("owner", b"k" * 64, "")
ACTIVE = 2


class CountedObjects(MemoryObjects):
    """Objects in a dictionary, and the requests for them."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        self.requests.append(f"get {key}")
        return super().get(key, sha256, max_bytes=max_bytes)

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        self.requests.append(f"list {prefix}")
        return super().list_objects(prefix, after=after, limit=limit)


@pytest.fixture(name="objects")
def _objects() -> CountedObjects:
    """Evidence of versions 1 to 5, with two attempts of version 3."""
    objects = CountedObjects()
    registry = Registry(objects, all_keys(KEYS.operator))
    for version in range(1, 6):
        registry.put_evidence(evidence(version))
    registry.put_evidence(evidence(3, attempt=2))
    objects.requests.clear()
    return objects


def reader(objects: CountedObjects) -> EvidenceReader:
    return EvidenceReader(objects, KEYS, None)


SERVED = channel(ACTIVE, previous=0)


def attempts_read(objects: CountedObjects, needs: StoreNeeds, served: Channel | None = SERVED) -> list[tuple[int, int]]:
    found = reader(objects).read([0, 1, ACTIVE, 3, 5], needs, served)
    return [(one.version, one.attempt) for one in found]


def test_one_request_lists_the_evidence_of_every_version(objects: CountedObjects) -> None:
    assert attempts_read(objects, StoreNeeds()) == [(2, 1), (3, 1), (3, 2), (5, 1)]
    assert [each for each in objects.requests if each.startswith("list")] == [f"list {Keys.EVIDENCE}"]


@pytest.mark.parametrize("versions", [[3], [ACTIVE, 3]], ids=["listed alone", "listed with others"])
def test_evidence_after_a_thousand_attempts_that_could_not_be_made_counts(
    objects: CountedObjects, versions: list[int]
) -> None:
    Registry(objects, all_keys(KEYS.operator)).put_evidence(evidence(3, attempt=1500))
    found = reader(objects).read(versions, StoreNeeds(), SERVED)
    assert (3, 1500) in [(one.version, one.attempt) for one in found]
    objects.put(Keys.evidence(3, 99_999_999), b"{}")
    with pytest.raises(InvalidRecord, match="out of sequence"):
        reader(objects).read(versions, StoreNeeds(), SERVED)


def test_evidence_of_a_version_older_than_the_active_one_is_read_only_for_who_asks(objects: CountedObjects) -> None:
    assert (1, 1) not in attempts_read(objects, StoreNeeds())
    assert (1, 1) in attempts_read(objects, StoreNeeds(versions=frozenset({1})))


def test_evidence_of_the_previous_version_is_read_for_the_status(objects: CountedObjects) -> None:
    assert (1, 1) in attempts_read(objects, StoreNeeds(), channel(ACTIVE, previous=1))


def test_all_evidence_is_read_before_a_version_is_active(objects: CountedObjects) -> None:
    assert attempts_read(objects, StoreNeeds(), None)[0] == (1, 1)


def test_what_is_known_is_neither_listed_nor_read_again(objects: CountedObjects) -> None:
    one = reader(objects)
    first = one.read([ACTIVE, 3], StoreNeeds(), channel(ACTIVE))
    objects.requests.clear()
    assert one.read([ACTIVE, 3], StoreNeeds(), channel(ACTIVE)) == first
    assert objects.requests == []


def test_each_version_is_listed_alone_where_there_is_too_much_in_between(objects: CountedObjects) -> None:
    for number in range(MAX_ATTEMPTS_LISTED):
        objects.put(f"{Keys.evidence_of(4)}{number:08d}.txt", b"")
    assert attempts_read(objects, StoreNeeds()) == [(2, 1), (3, 1), (3, 2), (5, 1)]
    assert f"list {Keys.evidence_of(5)}" in objects.requests


def test_a_foreign_record_of_a_needed_version_is_named_and_another_is_left_alone(objects: CountedObjects) -> None:
    objects.put(f"{Keys.evidence_of(4)}zzz.json", b"{}")
    assert attempts_read(objects, StoreNeeds())
    objects.put(f"{Keys.evidence_of(3)}zzz.json", b"{}")
    with pytest.raises(InvalidRecord, match=r"zzz\.json"):
        attempts_read(objects, StoreNeeds())
