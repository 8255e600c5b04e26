"""Shards fetched before their turn, so that learning does not wait for the store.

Invariants: they are taken in the trainer's order, whatever arrives first; at most :data:`AHEAD` lie here or are on
their way; a fetch that failed fails when its turn comes, and one whose turn never comes is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread
from typing import Final

AHEAD: Final = 3
"""The shard in turn and the two after it. More would only take memory: a shard is learnt from for longer than it takes
to come."""


class ShardPrefetcher:
    """Fetches by ``fetch``, which is called from threads that end with the process: an executor would be waited for at
    its end, however long the store takes to answer."""

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        self._fetch = fetch
        self._coming: dict[str, Future[bytes]] = {}

    def expect(self, keys: Sequence[str]) -> None:
        """Begin to fetch the first of ``keys``, which will be taken in this order."""
        wanted = keys[:AHEAD]
        self._coming = {key: self._coming.get(key) or self._begin(key) for key in wanted}

    def take(self, key: str) -> bytes:
        """What ``fetch`` gave for ``key``, or gives now; raises what it raised."""
        coming = self._coming.pop(key, None)
        return coming.result() if coming else self._fetch(key)

    def _begin(self, key: str) -> Future[bytes]:
        coming: Future[bytes] = Future()

        def run() -> None:
            try:
                coming.set_result(self._fetch(key))
            except BaseException as error:  # whatever it is: who takes the shard hears of it
                coming.set_exception(error)

        Thread(target=run, name=f"fetch {key}", daemon=True).start()
        return coming
