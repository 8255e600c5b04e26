"""Which shards of a lineage are new, which were learnt from, and which of those may go.

Invariant: a shard is offered until it is marked consumed, and never after, whether it is still there or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from aurora_protocol.training_records import TrainerState
from aurora_runtime.training.retry import Retrier
from aurora_store import Registry
from aurora_store.shard_store import ShardListing

FREE_LOOK_S: Final = 0.1
"""A look that took less may be repeated as often as the trainer polls."""
LOOK_SHARE: Final = 0.05
"""Longer looks, into many shards, take no more than this share of the time."""


class ShardLedger:
    """The shards of one lineage by their manifest keys. What outlives the process is in the trainer's state."""

    def __init__(
        self,
        registry: Registry,
        lineage: int,
        patience: Retrier,
        state: TrainerState | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._lineage, self._patience = registry, lineage, patience
        self._consumed = dict.fromkeys(state.consumed if state else ())
        self._retired = dict.fromkeys(state.retired if state else ())
        self.forgotten = state.forgotten if state else 0
        self.changes = 0
        """How often anything of what is saved changed since the start."""
        self.stored = ShardListing()
        """As of the last look."""
        self.looked, self._due, self._clock = 0.0, 0.0, clock

    @property
    def consumed(self) -> tuple[str, ...]:
        """In the order of their consumption."""
        return tuple(self._consumed)

    @property
    def retired(self) -> tuple[str, ...]:
        """Consumed, needed no more, and deleted once every stored state says so."""
        return tuple(self._retired)

    @property
    def total(self) -> int:
        """How many shards were ever consumed."""
        return len(self._consumed) + len(self._retired) + self.forgotten

    def pending(self) -> list[str]:
        """What is not consumed, oldest hour first, as the store has it now, or had it when looking is costly."""
        if self._clock() >= self._due:
            self._look()
        return [key for key in self.stored.data_bytes if key not in self._consumed and key not in self._retired]

    def _look(self) -> None:
        began = self._clock()
        self.stored = self._patience.call("listing shards", lambda: self._registry.list_shards(self._lineage))
        self.looked = self._clock()
        took = self.looked - began
        self._due = self.looked + (took / LOOK_SHARE if took > FREE_LOOK_S else 0.0)

    def size(self, key: str) -> int:
        """Bytes of the shard's data; 0 when the last look did not find it."""
        return self.stored.data_bytes.get(key, 0)

    def newest(self, keys: tuple[str, ...], limit: int) -> int:
        """How many of the last of ``keys`` it takes to reach ``limit`` bytes."""
        total = 0
        for number, key in enumerate(reversed(keys)):
            if total >= limit:
                return number
            total += self.size(key)
        return len(keys)

    def consume(self, key: str) -> None:
        self._consumed.setdefault(key)
        self.changes += 1

    def retire(self, key: str) -> None:
        """A consumed shard is needed no more."""
        del self._consumed[key]
        self._retired.setdefault(key)
        self.changes += 1

    def forget(self, key: str) -> None:
        """A shard is deleted."""
        self.stored.data_bytes.pop(key, None)
        if key in self._retired:
            del self._retired[key]
            self.forgotten += 1
            self.changes += 1
