"""Prefetching changes only when a shard is fetched."""

from __future__ import annotations

from threading import Event, Lock

import pytest

from aurora_runtime.training.data.prefetch import ShardPrefetcher

KEYS = [f"shard-{i}" for i in range(6)]
DEPTH = 3
TIMEOUT_SECONDS = 10.0


class Store:
    """Answers once it is ``open``; ``broken`` keys fail."""

    def __init__(self, broken: str = "") -> None:
        self.open, self.asked, self._broken, self._lock = Event(), list[str](), broken, Lock()
        self.begun = {key: Event() for key in KEYS}

    def fetch(self, key: str) -> bytes:
        with self._lock:
            self.asked.append(key)
        self.begun[key].set()
        assert self.open.wait(TIMEOUT_SECONDS)
        if key == self._broken:
            raise OSError(key)
        return key.encode()


def fetch_in_turn(store: Store) -> list[str]:
    """The results when a trainer requests every shard in turn."""
    prefetcher, found = ShardPrefetcher(store.fetch, DEPTH), list[str]()
    for place, key in enumerate(KEYS):
        prefetcher.prefetch(KEYS[place:])
        try:
            found.append(prefetcher.get(key).decode())
        except OSError as error:
            found.append(f"no {error}")
    return found


def test_every_shard_is_fetched_once_and_a_failed_fetch_raises_in_its_turn() -> None:
    store = Store(broken=KEYS[2])
    store.open.set()
    assert fetch_in_turn(store) == [*KEYS[:2], f"no {KEYS[2]}", *KEYS[3:]]
    assert sorted(store.asked) == KEYS


def test_no_more_shards_are_prefetched_than_allowed() -> None:
    store = Store()
    prefetcher = ShardPrefetcher(store.fetch, DEPTH)
    prefetcher.prefetch(KEYS)
    prefetcher.prefetch(KEYS)
    for key in KEYS[:DEPTH]:
        assert store.begun[key].wait(TIMEOUT_SECONDS)
    assert sorted(store.asked) == KEYS[:DEPTH]
    store.open.set()
    assert [prefetcher.get(key) for key in KEYS[:DEPTH]] == [key.encode() for key in KEYS[:DEPTH]]


@pytest.mark.parametrize(("limit", "begun"), [(1, 1), (19, 1), (20, 2), (29, 2), (30, 3)])
def test_prefetched_shards_fit_into_their_bytes_and_the_next_is_always_fetched(limit: int, begun: int) -> None:
    store = Store()
    prefetcher = ShardPrefetcher(store.fetch, DEPTH, limit)
    prefetcher.prefetch(KEYS, lambda _: 10)
    for key in KEYS[:begun]:
        assert store.begun[key].wait(TIMEOUT_SECONDS)
    assert sorted(store.asked) == KEYS[:begun]
    store.open.set()


def test_a_shard_of_unknown_size_counts_once_it_has_arrived() -> None:
    store = Store()
    store.open.set()
    prefetcher = ShardPrefetcher(store.fetch, 1, len(KEYS[0]))
    prefetcher.prefetch(KEYS)
    assert prefetcher._pending[KEYS[0]].result(TIMEOUT_SECONDS)
    prefetcher._depth = DEPTH
    prefetcher.prefetch(KEYS, lambda key: 1 if key == KEYS[1] else 0)
    assert store.asked == KEYS[:1]


def test_a_shard_that_was_not_prefetched_is_fetched_on_request() -> None:
    store = Store()
    store.open.set()
    prefetcher = ShardPrefetcher(store.fetch, DEPTH)
    assert prefetcher.get(KEYS[3]) == KEYS[3].encode()


def test_prefetched_shards_that_are_not_requested_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(broken=KEYS[0])
    prefetcher = ShardPrefetcher(store.fetch, DEPTH)
    prefetcher.prefetch(KEYS[:1])
    prefetcher.prefetch(KEYS[1:2])
    store.open.set()
    assert prefetcher.get(KEYS[1]) == KEYS[1].encode()
    assert not caplog.records
