"""Reads shards from a store that may be away, and gives up a shard that the store alone refuses.

Why: a lifecycle rule of the bucket may archive an object, or a KMS key of older objects may be disabled. The trainer
would wait for such a shard for ever.

Invariant: a shard is given up only for what the store says about it, and only after it was refused for minutes in which
the store gave another shard after each refusal. So neither a slow store, nor an outage, nor a lost right costs a shard.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from aurora_runtime.errors import ShardRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.retry import Retrier
from aurora_store.errors import ObjectArchived, ObjectRefused, StoreError
from aurora_store.keys import lineage_of_shard

MAX_REFUSED_SECONDS: Final = 180.0
"""How long one shard may be refused while others can be read. It is less than the time after which the operator takes
the trainer for silent."""
NEXT_REFUSED_SECONDS: Final = 15.0
"""The same once a shard was given up, because the same cause often meets many shards. It holds until a shard can be
read again after a failure."""
TRIED_SHARDS: Final = 3
"""How many other shards are tried, newest first."""


class PatientShardReads:
    """Reads the data of shards. Several threads may read at once."""

    def __init__(self, registry: PodRegistry, retrier: Retrier, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._retrier, self._clock = registry, retrier, clock
        self._patience = MAX_REFUSED_SECONDS

    def read(self, key: str) -> bytes:
        """The verified data of a shard. Waits while the store is away.

        Raises :class:`ShardRefused`, and what :meth:`PodRegistry.shard` raises for a shard that is damaged.
        """
        refused_since: float | None = None

        def attempt() -> bytes:
            nonlocal refused_since
            try:
                data = self._registry.shard(key)[1]
            except ObjectArchived as error:
                raise ShardRefused(str(error)) from error
            except ObjectRefused as error:
                if not self._can_read_another(key):
                    refused_since = None  # the time of an outage does not count
                    raise
                now = self._clock()
                refused_since = now if refused_since is None else refused_since
                if now - refused_since < self._patience:
                    raise
                self._patience = NEXT_REFUSED_SECONDS
                text = f"the store refused it for {now - refused_since:.0f} s, and gives other shards"
                raise ShardRefused(f"{text}: {error}") from error
            except StoreError:
                refused_since = None  # it says nothing about the shard
                raise
            if refused_since is not None:
                self._patience = MAX_REFUSED_SECONDS
            return data

        return self._retrier.call(f"reading {key}", attempt)

    def _can_read_another(self, key: str) -> bool:
        """Whether the store gives the data of another shard at this moment."""
        try:
            newest = self._registry.newest_shards(lineage_of_shard(key), TRIED_SHARDS + 1)
        except StoreError:
            return False
        return any(self._can_read(other) for other in newest if other != key)

    def _can_read(self, key: str) -> bool:
        try:
            return bool(self._registry.shard_range(key, 0, 1))
        except StoreError:
            return False
