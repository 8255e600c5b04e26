"""A create that S3 refuses with a conflict is repeated within the deadline of one call.

The store is a fake on loopback: a real store answers with a conflict only while another write is under way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import ObjectExists, StoreError, StoreInterrupted, StoreOverdue
from aurora_store.s3_calls import write_conflicts
from aurora_store.s3_calls.call_limits import PAUSE_POLL_SECONDS, interruptible, total_deadline
from tests.assets.faulty_store import Answer, FaultyStore, Request, faulty_store, hang

CALL_SECONDS = 1.0
LONG_PAUSE_SECONDS = 120.0
MARGIN_SECONDS = 20.0
"""Far below the shortest pause, which is half of the longest."""
DATA = b"record"
CONFLICT = b"<?xml version='1.0'?><Error><Code>ConditionalRequestConflict</Code></Error>"
REFUSED = b"<?xml version='1.0'?><Error><Code>PreconditionFailed</Code></Error>"

Create = Callable[[ObjectStore], None]


@pytest.fixture(name="store")
def _store() -> Iterator[FaultyStore]:
    with faulty_store(hang) as fake:
        yield fake


@pytest.fixture(name="create", params=["bytes", "file"])
def _create(request: pytest.FixtureRequest, tmp_path: Path) -> Create:
    """Creates an object, from bytes or from a file."""
    file = tmp_path / "file"
    file.write_bytes(DATA)
    if request.param == "bytes":
        return lambda objects: objects.create("x", DATA)
    return lambda objects: objects.create_file("x", file)


def objects(store: FaultyStore, call_seconds: float = 60) -> ObjectStore:
    config = StoreConfig("bucket", "root", store.endpoint, "us-east-1", "access", "secret")
    return ObjectStore(config, attempts=1, call_seconds=call_seconds)


def conflicts(count: int, seconds: float = 0.0, bodies: list[bytes] | None = None) -> Answer:
    """Refuse the first ``count`` writes with a conflict. Each answer takes ``seconds``."""
    written: list[bytes] = [] if bodies is None else bodies

    def answer(request: Request) -> None:
        time.sleep(seconds)
        written.append(request.body)
        if len(written) <= count:
            request.reply(409, CONFLICT)
        else:
            request.reply(200, ETag='"1"')

    return answer


def test_a_create_succeeds_on_its_second_try_and_sends_the_whole_body_again(store: FaultyStore, create: Create) -> None:
    bodies: list[bytes] = []
    store.answer = conflicts(1, bodies=bodies)
    create(objects(store))
    assert bodies == [DATA, DATA]


def test_a_conflict_that_lasts_is_raised_after_the_last_try(store: FaultyStore, create: Create) -> None:
    store.answer = conflicts(1000)
    with pytest.raises(StoreError, match="create x: another write of the object was under way; try again") as raised:
        create(objects(store))
    assert not isinstance(raised.value, ObjectExists)
    assert len(store.requests) == write_conflicts.TRIES


def test_the_repeats_share_the_deadline_of_one_call(
    store: FaultyStore, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_conflicts, "PAUSE_SECONDS", 0.0)
    store.answer = conflicts(1000, CALL_SECONDS * 0.6)
    with pytest.raises(StoreOverdue, match="no complete answer within 1 s"):
        create(objects(store, CALL_SECONDS))
    assert len(store.requests) < write_conflicts.TRIES


def test_a_pause_ends_at_the_deadline(store: FaultyStore, create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_conflicts, "PAUSE_SECONDS", LONG_PAUSE_SECONDS)
    store.answer = conflicts(1000)
    began = time.monotonic()
    with pytest.raises(StoreOverdue):
        create(objects(store, CALL_SECONDS))
    assert time.monotonic() - began < CALL_SECONDS + MARGIN_SECONDS
    assert len(store.requests) == 1


def test_a_pause_ends_soon_when_nobody_waits_any_more(
    store: FaultyStore, create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_conflicts, "PAUSE_SECONDS", LONG_PAUSE_SECONDS)
    store.answer = conflicts(1000)
    given_up = threading.Event()
    threading.Timer(0.3, given_up.set).start()
    began = time.monotonic()
    with interruptible(given_up.is_set), pytest.raises(StoreInterrupted, match="nobody waits"):
        create(objects(store))
    assert time.monotonic() - began < 0.3 + PAUSE_POLL_SECONDS + MARGIN_SECONDS


def test_the_read_that_compares_shares_the_deadline_of_the_create(store: FaultyStore) -> None:
    def answer(request: Request) -> None:
        if request.command == "PUT":
            time.sleep(1.0)
            request.reply(412, REFUSED)
        else:
            time.sleep(1.5)
            request.reply(200, DATA)

    store.answer = answer
    objects(store).create("x", DATA)
    with pytest.raises(StoreOverdue):
        objects(store, call_seconds=2).create("x", DATA)
    assert [request.split()[0] for request in store.requests] == ["PUT", "GET"] * 2


def test_a_total_deadline_inside_another_one_does_not_extend_it(store: FaultyStore) -> None:
    began = time.monotonic()
    with total_deadline(CALL_SECONDS), total_deadline(60), pytest.raises(StoreOverdue):
        objects(store).get("x")
    assert time.monotonic() - began < CALL_SECONDS + MARGIN_SECONDS
