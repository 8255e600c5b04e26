"""How the versions of a deleted root go, in a store with versioning that tests play."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import pytest

from aurora_store import Keys
from aurora_store.errors import AccessRefused, StoreError
from aurora_store.objects import ObjectInfo
from aurora_store.root import deletion_pass
from aurora_store.root.deletable_objects import DeletableObjects, ObjectVersion, Page, UnfinishedUpload
from aurora_store.root.root_remains import MAX_PASSES
from aurora_store.s3_calls.batch_deletion import RefusedDeletions, refused_deletions
from tests.unit.store.test_root_deletion import channel, deletion_of, steps
from tests.unit.training import tiny

PAGE = 2
RECORD = Keys.channel(2)
"""The record that closes the root."""


class VersionedObjects(tiny.MemoryObjects, DeletableObjects):
    """Objects in a bucket with versioning. A page of a listing, and a request to delete, have two entries."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: dict[str, tuple[ObjectVersion, bytes]] = {}
        self.refusal: Callable[[ObjectInfo | ObjectVersion], str] = lambda item: ""
        """The code with which the store refuses to delete an item."""
        self.pages_listed = 0
        self.after_deletion: Callable[[], None] = lambda: None
        self._ids = (f"v{number:04}" for number in count())

    def add_version(self, key: str, data: bytes = b"", *, is_marker: bool = False) -> None:
        version = ObjectVersion(key, len(data), next(self._ids), is_marker)
        self.versions[version.version_id] = (version, data)
        self._show(key)

    def _show(self, key: str) -> None:
        """Let the newest version of ``key`` be the object."""
        newest = [(version, data) for version, data in self.versions.values() if version.key == key][-1:]
        self.data.pop(key, None)
        for version, data in newest:
            if not version.is_marker:
                self._write(key, data)

    def put(self, key: str, data: bytes) -> None:
        self.add_version(key, data)

    def create(self, key: str, data: bytes) -> None:
        assert key not in self.data
        self.add_version(key, data)

    def delete_batch(self, items: Sequence[ObjectInfo | ObjectVersion]) -> RefusedDeletions | None:
        errors = []
        for item in items:
            version = item.version_id if isinstance(item, ObjectVersion) else ""
            if code := self.refusal(item):
                errors.append({"Key": item.key, "VersionId": version, "Code": code})
            elif version:
                del self.versions[version]
                self._show(item.key)
            else:
                self.add_version(item.key, is_marker=True)
        self.after_deletion()
        return refused_deletions([self._identifier(item) | {"Key": item.key} for item in items], {"Errors": errors})

    def version_pages(self, prefix: str) -> Iterator[Page[ObjectVersion]]:
        listed = sorted(self.versions.values(), key=lambda each: (each[0].key, each[0].version_id))
        left = [version for version, _ in listed if version.key.startswith(prefix)]
        for first in range(0, max(len(left), 1), PAGE):
            self.pages_listed += 1
            yield Page(left[first : first + PAGE], is_last=first + PAGE >= len(left))

    def list_uploads(self) -> Iterator[UnfinishedUpload]:
        return iter(())


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> VersionedObjects:
    """A root with a record and three traces."""
    monkeypatch.setattr(deletion_pass, "OBJECTS_PER_REQUEST", PAGE)
    objects = VersionedObjects()
    for number in range(3):
        objects.put(f"traces/{number}", b"1")
    objects.put(Keys.channel(1), channel(1).to_json())
    return objects


def is_version(item: ObjectInfo | ObjectVersion) -> bool:
    return isinstance(item, ObjectVersion) and not item.is_marker


def test_a_step_lists_one_page_when_its_time_is_over_although_nothing_on_it_is_deleted(
    objects: VersionedObjects,
) -> None:
    """Otherwise a large root of delete markers is listed whole in one step, is cut off, and begins again for ever."""
    objects.versions.clear()
    objects.data.clear()
    objects.put(Keys.channel(1), channel(1).to_json())
    for number in range(20):
        objects.add_version(f"traces/{number:02}", is_marker=True)
    deletion, done = deletion_of(objects), False
    for _ in range(60):
        objects.pages_listed = 0
        done = deletion.step(0).done
        if done:
            break
        assert objects.pages_listed <= 3, "the last page of one pass, the first of the next, and no more"
    assert done
    assert objects.versions == {}


def test_bytes_of_hidden_objects_count_once(objects: VersionedObjects) -> None:
    size_bytes = 3 + len(channel(1).to_json())
    deletion = deletion_of(objects)
    progress = steps(deletion, expects_records=True)
    assert progress.only_record_left
    assert (progress.objects, progress.versions, progress.size_bytes) == (4, 8, size_bytes)
    assert steps(deletion).done


def test_a_refused_object_protects_no_older_version(objects: VersionedObjects) -> None:
    objects.put("evidence/1", b"older")
    objects.put("evidence/1", b"newer")
    objects.refusal = lambda item: "AccessDenied" if item.key == "evidence/1" else ""
    deletion = deletion_of(objects)
    with pytest.raises(AccessRefused, match=r"delete evidence/1: .*\(1 objects were refused\)"):
        steps(deletion)
    assert {version.key for version, _ in objects.versions.values() if not version.is_marker} == {"evidence/1", RECORD}
    objects.refusal = lambda item: ""
    assert steps(deletion).done
    assert objects.versions == {}


@pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
def test_a_refusal_that_may_pass_is_tried_again(objects: VersionedObjects, code: str) -> None:
    objects.put("evidence/1", b"1")
    objects.refusal = lambda item: code if is_version(item) and item.key == "evidence/1" else ""
    deletion = deletion_of(objects)
    for _ in range(2 * MAX_PASSES):
        with pytest.raises(StoreError, match=rf"{code}.*\(1 objects were refused\)"):
            steps(deletion)
    assert {version.key for version, _ in objects.versions.values() if not version.is_marker} == {"evidence/1", RECORD}
    objects.refusal = lambda item: ""
    progress = steps(deletion)
    assert (progress.done, progress.remains, objects.versions) == (True, "", {})


def test_a_lock_hides_no_refusal_that_may_pass(objects: VersionedObjects) -> None:
    codes = {"traces/0": "AccessDenied", "traces/1": "SlowDown"}
    objects.refusal = lambda item: codes.get(item.key, "") if is_version(item) else ""
    deletion = deletion_of(objects)
    with pytest.raises(StoreError, match="SlowDown"):
        steps(deletion)
    del codes["traces/1"]
    progress = steps(deletion)
    assert "refused to delete 1 older versions, the first one of traces/0 (AccessDenied)" in progress.remains


@pytest.mark.parametrize("late", [1, 3 * MAX_PASSES])
def test_versions_that_appear_after_the_markers_end_a_deletion_all_the_same(
    objects: VersionedObjects, late: int
) -> None:
    """A listing of versions may leave one out at first, and a listing of objects may be behind."""
    left = late

    def appear() -> None:
        nonlocal left
        if left and Keys.channel(1) not in objects.data and RECORD not in objects.data:
            left -= 1
            objects.add_version("traces/late", b"1")
            objects.data.pop("traces/late")

    objects.after_deletion = appear
    deletion = deletion_of(objects)
    progress = next(progress for progress in (deletion.step(0) for _ in range(300)) if progress.done)
    if late == 1:
        assert (progress.remains, objects.versions) == ("", {})
    else:
        assert f"the store still lists older versions after {MAX_PASSES} deletions" in progress.remains


def test_a_marker_of_the_last_record_stays_until_its_versions_are_gone(objects: VersionedObjects) -> None:
    deletion = deletion_of(objects)
    assert steps(deletion, expects_records=True).only_record_left
    for _ in range(3 * PAGE):
        objects.put(RECORD, objects.data[RECORD])
    shown: list[int] = []
    objects.after_deletion = lambda: shown.append(len(objects.data))
    assert steps(deletion).done
    assert set(shown) == {0}, "the record never appears again"
    assert objects.versions == {}
