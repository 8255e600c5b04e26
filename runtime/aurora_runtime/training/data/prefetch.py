"""Prefetch of shards, so that training does not wait for the store.

Invariants: shards are returned in the order in which the trainer asks for them, whichever arrives first. At most
``depth`` shards are being fetched or wait in memory. A failed fetch raises when its shard is asked for, and the failure
of a shard that is never asked for is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread


class ShardPrefetcher:
    """Calls ``fetch`` from daemon threads, which end with the process.

    An executor's threads would be joined at exit, so a slow store would delay the exit.
    """

    def __init__(self, fetch: Callable[[str], bytes], depth: int) -> None:
        self._fetch, self._depth = fetch, depth
        self._pending: dict[str, Future[bytes]] = {}

    def prefetch(self, keys: Sequence[str]) -> None:
        """Begin to fetch the first of ``keys``, which are asked for next and in this order."""
        self._pending = {key: self._pending.get(key) or self._begin(key) for key in keys[: self._depth]}

    def get(self, key: str) -> bytes:
        """The data of ``key``, fetched now unless it was prefetched; raises what ``fetch`` raised."""
        pending = self._pending.pop(key, None)
        return pending.result() if pending else self._fetch(key)

    def _begin(self, key: str) -> Future[bytes]:
        future: Future[bytes] = Future()

        def run() -> None:
            try:
                future.set_result(self._fetch(key))
            except BaseException as error:  # any error is raised again by get()
                future.set_exception(error)

        Thread(target=run, name=f"fetch {key}", daemon=True).start()
        return future
