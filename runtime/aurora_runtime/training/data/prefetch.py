"""Prefetch of shards, so that training does not wait for the store.

Invariants: shards are returned in the order in which the trainer asks for them, whichever arrives first. At most
``depth`` shards are being fetched or wait in memory. Of these, all but the next one fit into ``limit_bytes`` together
with it. A failed fetch raises when its shard is asked for, and the failure of a shard that is never asked for is
dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread

from aurora_runtime.training.settings import DEFAULT_POLICY


class ShardPrefetcher:
    """Calls ``fetch`` from daemon threads, which end with the process.

    An executor's threads would be joined at exit, so a slow store would delay the exit.
    """

    def __init__(
        self, fetch: Callable[[str], bytes], depth: int, limit_bytes: int = DEFAULT_POLICY.prefetched_bytes
    ) -> None:
        self._fetch, self._depth, self._limit_bytes = fetch, depth, limit_bytes
        self._pending: dict[str, Future[bytes]] = {}

    def prefetch(self, keys: Sequence[str], size_of: Callable[[str], int] = lambda _: 0) -> None:
        """Begin to fetch the first of ``keys``, which are asked for next and in this order.

        ``size_of`` gives the bytes of a shard, or 0 where they are not known before the shard has arrived.
        """
        before, self._pending, total = self._pending, {}, 0
        for key in keys[: self._depth]:
            total += max(size_of(key), _arrived_bytes(before.get(key)))
            if self._pending and total > self._limit_bytes:
                break
            self._pending[key] = before.get(key) or self._begin(key)

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


def _arrived_bytes(future: Future[bytes] | None) -> int:
    if future is None or not future.done() or future.exception() is not None:
        return 0
    return len(future.result())
