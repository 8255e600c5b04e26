"""Tracks which shards of a lineage are new, which were consumed, and which of those may be deleted.

Invariant: a shard is pending until it is marked consumed, and never after, whether its objects still exist or not.

The life of a shard: *pending* until the trainer takes it, then *consumed*, even if it is damaged. *Retired* when the
store needs its room, and *deleted* once every stored state lists it as retired. :mod:`.retention` retires and deletes.
A shard without room in the store is *skipped*: it goes from pending to deleted, untrained.
An *orphan* is data without a manifest, so it is not yet a shard. An orphan that stays untouched for long is an
*abandoned upload*, and is deleted too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from aurora_protocol.training_records import TrainerState
from aurora_runtime.pod_registry import PodRegistry, ShardListing
from aurora_runtime.training.retry import Retrier

CHEAP_LISTING_SECONDS: Final = 0.1
"""A listing that took less time may be repeated at every poll of the trainer."""
MAX_LISTING_TIME_SHARE: Final = 0.05
"""Longer listings, of many shards, take no more than this share of the trainer's time."""


class ShardLedger:
    """The shards of one lineage by their manifest keys. The trainer's state holds what outlives the process."""

    def __init__(
        self,
        registry: PodRegistry,
        lineage: int,
        retrier: Retrier,
        state: TrainerState | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self.lineage, self._retrier = registry, lineage, retrier
        self._consumed = dict.fromkeys(state.consumed if state else ())
        self._retired = dict.fromkeys(state.retired if state else ())
        self.forgotten = state.forgotten if state else 0
        """Number of consumed shards that were deleted and are no longer listed."""
        self.changes = 0
        """How often any saved part changed since the start."""
        self.listing = ShardListing()
        """The last listing."""
        self.arrivals = 0
        """How many listings showed a shard or an unfinished upload that the listing before lacked."""
        self.listed_at, self._next_listing, self._clock = 0.0, 0.0, clock

    @property
    def consumed(self) -> tuple[str, ...]:
        """Consumed shards, in the order of their consumption."""
        return tuple(self._consumed)

    @property
    def retired(self) -> tuple[str, ...]:
        """Consumed shards that are no longer needed. They are deleted once every stored state lists them here."""
        return tuple(self._retired)

    @property
    def total(self) -> int:
        """How many shards were ever consumed."""
        return len(self._consumed) + len(self._retired) + self.forgotten

    def pending(self) -> list[str]:
        """Shards that are not consumed, oldest hour first. After a slow listing, later calls reuse it for a while."""
        if self._clock() >= self._next_listing:
            self._list()
        return [key for key in self.listing.data_bytes if key not in self._consumed and key not in self._retired]

    def seconds_until_listing(self) -> float:
        """How long :meth:`pending` will go on to reuse the last listing."""
        return max(0.0, self._next_listing - self._clock())

    def _list(self) -> None:
        began, known = self._clock(), self.listing.data_bytes.keys() | self.listing.orphans.keys()
        self.listing = self._retrier.call("listing shards", lambda: self._registry.list_shards(self.lineage))
        self.arrivals += not known.issuperset(self.listing.data_bytes.keys() | self.listing.orphans.keys())
        self.listed_at = self._clock()
        seconds = self.listed_at - began
        pause = seconds / MAX_LISTING_TIME_SHARE if seconds > CHEAP_LISTING_SECONDS else 0.0
        self._next_listing = self.listed_at + pause

    def size(self, key: str) -> int:
        """Bytes of the shard's data; 0 when the last listing lacks the shard."""
        return self.listing.data_bytes.get(key, 0)

    def count_newest(self, keys: tuple[str, ...], limit_bytes: int) -> int:
        """How many of the last of ``keys`` are needed to reach ``limit_bytes``."""
        total = 0
        for number, key in enumerate(reversed(keys)):
            if total >= limit_bytes:
                return number
            total += self.size(key)
        return len(keys)

    def consume(self, key: str) -> None:
        """Mark a shard consumed: it is part of the weights, or damaged."""
        self._consumed.setdefault(key)
        self.changes += 1

    def retire(self, key: str) -> None:
        """Mark a consumed shard as no longer needed."""
        del self._consumed[key]
        self._retired.setdefault(key)
        self.changes += 1

    def touch(self) -> None:
        """Ask for another save, although nothing changed: a shard waits until all stored states list it as retired."""
        self.changes += 1

    def forget(self, key: str) -> None:
        """Drop a deleted shard from the lists."""
        self.listing.data_bytes.pop(key, None)
        if key in self._retired:
            del self._retired[key]
            self.forgotten += 1
            self.changes += 1
