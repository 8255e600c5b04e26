"""What a store says that refuses a right, as a fake shows it: errors of ours, and no text of the store in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import ObjectMissing, ObjectRefused
from aurora_store.root_deletion import RootDeletion
from tests.assets.faulty_store import FaultyStore, Request, faulty_store, whole

KEY = "trainer/status.json"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>arn:secret is not authorized</Message></Error>"


def listing(*keys: str) -> bytes:
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        for key in keys
    )
    return f"<?xml version='1.0'?><ListBucketResult>{entries}</ListBucketResult>".encode()


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(whole(403, DENIED)) as fake:
        yield fake


def objects(store: FaultyStore) -> ObjectStore:
    return ObjectStore(StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret"), attempts=1)


def answers(listed: bytes | None, head: int = 403) -> Callable[[Request], None]:
    """Refuse objects, and answer listings with ``listed``; None: refuse these too."""

    def answer(request: Request) -> None:
        if "list-type=2" in request.path and listed is not None:
            request.reply(200, listed)
        elif request.command == "HEAD":
            request.reply(head)
        else:
            request.reply(403, DENIED)

    return answer


READS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "get": lambda objects, _: objects.get(KEY),
    "range": lambda objects, _: objects.get_range(KEY, 0, 10),
    "download": lambda objects, folder: objects.download(KEY, folder / "x", "0" * 64, max_bytes=10),
}


@pytest.mark.parametrize("read", READS)
def test_a_missing_object_is_missing_although_s3_says_access_denied(
    store: FaultyStore, tmp_path: Path, read: str
) -> None:
    store.answer = answers(listing(f"root/{KEY}.old"))
    with pytest.raises(ObjectMissing):
        READS[read](objects(store), tmp_path)


@pytest.mark.parametrize("read", READS)
def test_an_archived_object_is_told_from_a_store_that_is_away(store: FaultyStore, tmp_path: Path, read: str) -> None:
    store.answer = whole(403, DENIED.replace(b"AccessDenied", b"InvalidObjectState"))
    with pytest.raises(ObjectRefused, match="InvalidObjectState; restore the object"):
        READS[read](objects(store), tmp_path)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("listed", [listing(f"root/{KEY}"), None], ids=["listed", "unlistable"])
def test_an_object_that_may_not_be_read_is_not_taken_for_a_missing_one(
    store: FaultyStore, tmp_path: Path, read: str, listed: bytes | None
) -> None:
    store.answer = answers(listed)
    with pytest.raises(ObjectRefused, match="AccessDenied; allow s3:GetObject for these credentials") as error:
        READS[read](objects(store), tmp_path)
    assert "arn:secret" not in str(error.value)


def test_a_bucket_that_may_not_be_looked_at_is_there_if_its_root_can_be_listed(store: FaultyStore) -> None:
    store.answer = answers(listing())
    objects(store).ensure_bucket()
    store.answer = answers(None)
    with pytest.raises(ObjectRefused, match="allow s3:ListBucket for"):
        objects(store).ensure_bucket()
    assert not any(request.startswith("PUT") for request in store.requests), "no bucket is created on a guess"


REFUSED = "<Error><Key>{}</Key><Code>{}</Code><Message>stranger</Message></Error>"


def test_a_deletion_that_is_refused_for_single_objects_names_the_first(store: FaultyStore) -> None:
    for code, words in (("AccessDenied", "allow s3:DeleteObject"), ("not a code of S3", "see the store's log")):
        errors = REFUSED.format("x/root/b", code) + REFUSED.format("x/root/c", "SlowDown")
        store.answer = whole(200, f"<DeleteResult>{errors}</DeleteResult>".encode())
        deletion = RootDeletion(replace(objects(store).config, root="x/root"), "01d00000", attempts=1)
        refused = deletion._request_deletion([{"Key": f"x/root/{name}"} for name in "abc"])
        error = str(deletion._deletion_error(refused))
        assert re.search(rf"^delete b: .*{words}.* \(2 objects were refused\)$", error)
        assert "stranger" not in error
        assert "not a code" not in error


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (405, "MethodNotAllowed"), (403, "AccessDenied")]
)
def test_a_root_is_deleted_by_a_store_that_refuses_to_list_versions_and_uploads(
    store: FaultyStore, status: int, code: str
) -> None:
    def answer(request: Request) -> None:
        if "list-type=2" in request.path:
            request.reply(200, listing())
        else:
            request.reply(status, f"<Error><Code>{code}</Code></Error>".encode())

    store.answer = answer
    deletion = RootDeletion(replace(objects(store).config, root="x/root-01d00000"), "01d00000", attempts=1)
    progress = deletion.step(10)
    assert (progress.done, progress.kept) == (True, "")
    assert f"older versions or unfinished uploads were not deleted: list the root: {code}" in progress.remains
