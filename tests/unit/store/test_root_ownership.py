"""A root has one owner at a time, and only the owner writes below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_store import FencedObjectStore, Keys, StoreConfig
from aurora_store.errors import NotRootOwner
from aurora_store.root_ownership import write_refusal
from tests.assets.faulty_store import Request, faulty_store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = "aurora/team/chat"
FIRST, SECOND, THIRD = "11111111", "22222222", "33333333"


def channel(owner: str = FIRST, reason: ChannelReason = ChannelReason.INITIAL) -> Channel:
    holder = RootOwner(id=owner, namespace="team", name="new", since=NOW)
    return Channel(epoch=4, lineage=1, active=2, reason=reason, owner=holder, created=NOW)


def test_before_the_first_record_nobody_owns_the_root() -> None:
    assert (write_refusal(None, ROOT, FIRST), write_refusal(None, ROOT, SECOND)) == ("", "")


def test_only_the_owner_writes_and_the_refusal_names_it() -> None:
    taken = channel(SECOND)
    assert write_refusal(taken, ROOT, SECOND) == ""
    for other in (FIRST, THIRD, None):
        assert "AuroraSpeculator team/new (uid 22222222…)" in write_refusal(taken, ROOT, other)


def test_nobody_writes_below_a_root_that_is_being_deleted() -> None:
    closed = channel(reason=ChannelReason.DELETING)
    assert "is being deleted" in write_refusal(closed, ROOT, FIRST)
    assert "is being deleted" in write_refusal(closed, ROOT, SECOND)


WRITES: dict[str, Callable[[FencedObjectStore, Path], object]] = {
    "put": lambda store, _: store.put("traces/1", b"1"),
    "create": lambda store, _: store.create("traces/1", b"1"),
    "create_file": lambda store, file: store.create_file("traces/1", file),
    "upload": lambda store, file: store.upload("traces/1", file),
    "delete": lambda store, _: store.delete("traces/1"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_store_of_a_pod_sends_no_write_below_a_root_that_another_speculator_owns(write: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    facts = "<Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
    record = f"<Contents><Key>{ROOT}/{Keys.channel(4)}</Key>{facts}</Contents>"

    def answer(request: Request) -> None:
        listed, taken = f"<ListBucketResult>{record}</ListBucketResult>".encode(), channel(SECOND).to_json()
        request.reply(200, b"" if request.command != "GET" else listed if "list-type=2" in request.path else taken)

    with faulty_store(answer) as fake:
        config = StoreConfig("bucket", ROOT, fake.endpoint, "us-east-1", "access", "secret", FIRST)
        with pytest.raises(NotRootOwner, match="team/new"):
            WRITES[write](FencedObjectStore(config, attempts=1), file)
        assert {request.split()[0] for request in fake.requests} == {"GET"}
        own = FencedObjectStore(replace(config, owner=SECOND), attempts=1)
        WRITES[write](own, file)
        assert fake.requests[-1].split()[0] in ("PUT", "DELETE")
