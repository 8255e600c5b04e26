"""A store that cannot list versions or uploads, as a fake shows it, holds no deletion, and the event says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_store import Keys, StoreConfig
from aurora_store.errors import StoreError
from aurora_store.keys import first_owner
from aurora_store.root.deletable_objects import DeletableObjects
from aurora_store.root.root_deletion import DeletionProgress, RootDeletion
from tests.assets.faulty_store import FaultyStore, Request, faulty_store, hang
from tests.unit.store.test_refused_rights import DENIED, listing
from tests.unit.store.test_root_deletion import NOW

ROOT = "aurora/team/chat-1a2b3c4d"
UNKNOWN = b"<?xml version='1.0'?><Error><Code>NotImplemented</Code></Error>"
BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>"
VERSIONS = (
    b"<?xml version='1.0'?><ListVersionsResult>"
    b"<Version><Key>%(root)s/traces/0</Key><VersionId>v1</VersionId><Size>1</Size></Version>"
    b"<Version><Key>%(root)s/%(record)s</Key><VersionId>v2</VersionId><Size>1</Size></Version></ListVersionsResult>"
) % {b"root": ROOT.encode(), b"record": Keys.channel(1).encode()}
CLOSED = Channel(epoch=1, lineage=1, active=0, reason=ChannelReason.DELETING, created=NOW)


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(hang) as fake:
        yield fake


def answers(
    versions: tuple[int, bytes], uploads: tuple[int, bytes], deletion: tuple[int, bytes] | None = None
) -> Callable[[Request], None]:
    """A root with the record that closed it, until the record is deleted. ``deletion`` answers those of versions."""
    left = [Keys.channel(1)]

    def answer(request: Request) -> None:
        if "versions" in request.path:
            request.reply(*versions)
        elif "uploads" in request.path:
            request.reply(*uploads)
        elif "list-type=2" in request.path:
            request.reply(200, listing(*(f"{ROOT}/{key}" for key in left)))
        elif request.command == "POST" and deletion is not None and b"VersionId" in request.body:
            request.reply(*deletion)
        elif request.command == "POST":
            left.clear()
            request.reply(200, b"<DeleteResult></DeleteResult>")
        else:
            request.reply(200, CLOSED.to_json())

    return answer


def finish(store: FaultyStore) -> DeletionProgress:
    objects = DeletableObjects(StoreConfig("bucket", ROOT, store.endpoint, "us-east-1", "access", "key"), attempts=1)
    return RootDeletion(objects, first_owner(ROOT)).step(5)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, DENIED, "AccessDenied; allow {} there"),
        (501, UNKNOWN, "the store does not know this call"),
        (405, b"", "the store does not know this call"),
    ],
)
def test_a_call_that_the_store_refuses_for_good_is_told(
    store: FaultyStore, status: int, body: bytes, words: str
) -> None:
    store.answer = answers((status, body), (status, body))
    progress = finish(store)
    assert progress.done
    for text in (
        "older versions were not deleted: ListObjectVersions: " + words.format("s3:ListBucketVersions"),
        "unfinished uploads were not aborted: ListMultipartUploads: " + words.format("s3:ListBucketMultipartUploads"),
    ):
        assert text in progress.remains
    assert "arn:secret" not in progress.remains


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, DENIED, "DeleteObjects: AccessDenied; allow s3:DeleteObjectVersion there"),
        (501, UNKNOWN, "DeleteObjects: the store does not know this call"),
    ],
)
def test_a_store_that_deletes_no_version_at_all_holds_no_deletion(
    store: FaultyStore, status: int, body: bytes, words: str
) -> None:
    """As with MFA Delete."""
    store.answer = answers((200, VERSIONS), (200, listing()), (status, body))
    progress = finish(store)
    assert progress.done
    assert f"older versions were not deleted: {words}" in progress.remains


def test_a_store_that_takes_the_call_for_another_listing_is_not_believed(store: FaultyStore) -> None:
    store.answer = answers((200, listing()), (200, listing()))
    progress = finish(store)
    assert progress.done
    assert f"the store's list of versions lacks {Keys.channel(1)}, which is stored" in progress.remains


def test_a_store_that_is_busy_is_asked_again(store: FaultyStore) -> None:
    store.answer = answers((503, BUSY), (503, BUSY))
    with pytest.raises(StoreError, match="SlowDown"):
        finish(store)
