"""Keeps the store bounded: deletes traces beyond the limit, oldest first, and traces that are too old.

The trainer does this, because only the trainer knows which shards are part of the weights. The held-out set, the
prompts of measurements and most of the replay buffer come from the newest shards, so those are kept. Invariants:

- A consumed shard is deleted only once every stored trainer state lists it as retired. So a trainer that resumes from
  any of these states neither trains on the shard twice nor misses it.
- Whenever a kill comes, no manifest names deleted data, and the state names every half-deleted shard.
- The newest consumed shards stay, as many bytes as the replay buffer holds, even while other shards must be deleted.
  Age knows no such exception.
- Data without a manifest are deleted only after they were untouched for long, and only if a check just before the
  deletion finds them unchanged. An agent that finishes such an upload between the check and the deletion loses the
  upload. The shard is then damaged, and skipped.
- Shards are deleted in small portions. A store that refuses a deletion only delays the deletion.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import Final

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerState
from aurora_runtime.pod_registry import KEPT_TRAINER_STATES, PodRegistry
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_runtime.training.state.trace_age import AgeLimit, utc_clock
from aurora_store.errors import StoreError

MIN_SHARD_LIMIT: Final = 4096
"""At least this many shards may be kept, whatever their size. A measurement searches at most half as many for its
prompts."""
DELETIONS_PER_CALL: Final = 32
RETRY_SECONDS: Final = 60.0
"""Pause after the store refused a deletion."""
ABANDONED_UPLOAD_SECONDS: Final = 3600.0
"""Data without a manifest for this long never get one, because a living agent retries every few minutes."""
EXPIRY_SECONDS: Final = 60.0
"""Pause between two looks for shards that are too old."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetentionLimits:
    """How much is kept, in bytes of shards and in their number.

    ``replay_bytes`` of the bytes, and half of the number, are reserved for consumed shards, so that a long backlog does
    not cost the replay buffer. The number counts because each shard takes space in listings and in the trainer's state.
    """

    total_bytes: int
    replay_bytes: int
    shards: int
    max_age: timedelta | None = None

    @classmethod
    def of(cls, total_bytes: int, replay_bytes: int, max_age_seconds: int | None = None) -> RetentionLimits:
        """One shard per MiB: a pod with little traffic closes small shards, three a minute.

        New shards keep half of the bytes, however large the replay buffer is.
        """
        max_age = None if max_age_seconds is None else timedelta(seconds=max_age_seconds)
        shards = max(MIN_SHARD_LIMIT, total_bytes >> 20)
        return cls(total_bytes, min(replay_bytes, total_bytes // 2), shards, max_age)


class AbandonedUploads:
    """Finds data without a manifest that stayed untouched for :data:`ABANDONED_UPLOAD_SECONDS`.

    The age counts between two listings by this process's clock.
    """

    def __init__(self) -> None:
        self._first_seen: dict[str, tuple[datetime, float]] = {}
        self.abandoned: dict[str, datetime] = {}
        """Manifest keys, and when the data were written."""

    def update(self, without_manifest: dict[str, datetime], listed_at: float) -> None:
        """Take in a listing: manifest keys, and when the data were written."""
        self._first_seen = {
            key: self._first_seen[key]
            if key in self._first_seen and self._first_seen[key][0] == modified
            else (modified, listed_at)
            for key, modified in without_manifest.items()
        }
        self.abandoned = {
            key: modified
            for key, (modified, since) in self._first_seen.items()
            if listed_at - since >= ABANDONED_UPLOAD_SECONDS
        }


class Retention:
    """Decides at each listing which shards to delete, and deletes them in portions between pieces of work."""

    def __init__(
        self,
        registry: PodRegistry,
        ledger: ShardLedger,
        limits: RetentionLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = utc_clock,
    ) -> None:
        self._registry, self._ledger, self._limits, self._clock = registry, ledger, limits, clock
        self._retired_by_epoch: dict[int, frozenset[str]] = {}
        self._deletable: dict[str, None] = {}
        self._uploads = AbandonedUploads()
        self._wait_until = 0.0
        self._age = AgeLimit(limits.max_age, utc)
        self._next_expiry = -math.inf
        self._expired: set[str] = set()
        self._not_taken: list[str] = []
        self.skipped = 0
        """Shards that are deleted untrained, since the start."""

    def shards_to_train(self) -> list[str]:
        """List the store, retire old shards, and return the shards to train on, oldest first.

        Shards without room in the store are skipped and will be deleted.
        """
        ledger, limits = self._ledger, self._limits
        pending = ledger.pending()
        self.expire()
        new = tuple(key for key in pending if key not in self._deletable)
        max_new = limits.shards // 2
        fitting = ledger.count_newest(new, max(limits.total_bytes - limits.replay_bytes, limits.replay_bytes))
        kept = min(fitting, max_new)
        limit = f"{limits.total_bytes / (1 << 30):g} GiB" if fitting <= max_new else f"{limits.shards} shards"
        self._skip(new[: len(new) - kept], limit)
        new = new[len(new) - kept :]
        self._retire(limits.total_bytes - sum(ledger.size(key) for key in new), limits.shards - kept)
        self._uploads.update(ledger.listing.orphans, ledger.listed_at)
        return list(new)

    def expire(self) -> None:
        """Give up the shards that are too old. Those that a state needs are retired, and go after two saves.

        Looks at the last listing, once in :data:`EXPIRY_SECONDS` however often it is called.
        """
        if not self._age.is_set or self._clock() < self._next_expiry:
            return
        self._next_expiry = self._clock() + EXPIRY_SECONDS
        ledger = self._ledger
        consumed, retired = frozenset(ledger.consumed), frozenset(ledger.retired)
        expired = self._age.expired(ledger.listing, [*consumed, *retired])
        untrained = frozenset(expired) - consumed - retired
        new = [key for key in expired if key not in self._expired and key not in self._deletable]
        for key in new:
            if key in consumed:
                ledger.retire(key)
            if key in untrained:
                self._deletable[key] = None
        if new:
            count = sum(key in untrained for key in new)
            log.info("%d shards are older than training.traceMaxAgeSeconds; %d were not trained", len(new), count)
        self._not_taken += new
        self._expired = set(expired) - self._deletable.keys()
        if self._expired:
            ledger.touch()

    def take_expired(self) -> frozenset[str]:
        """The shards that became too old since the last call. Nothing may be kept of them in memory either."""
        taken, self._not_taken = frozenset(self._not_taken), []
        return taken

    def _skip(self, keys: tuple[str, ...], limit: str) -> None:
        """Delete ``keys`` untrained. No state names them, so they may go at once."""
        if keys:
            self.skipped += len(keys)
            log.warning(
                "%d shards are deleted untrained, %d since the start: traces arrive faster than the trainer learns, and"
                " training.traceStorageLimit allows %s",
                len(keys),
                self.skipped,
                limit,
            )
            self._deletable |= dict.fromkeys(keys)

    def _retire(self, room_bytes: int, room_shards: int) -> None:
        """Retire the oldest consumed shards beyond ``room_bytes`` and ``room_shards``."""
        ledger, consumed = self._ledger, self._ledger.consumed
        kept = min(ledger.count_newest(consumed, max(room_bytes, self._limits.replay_bytes)), room_shards)
        for key in consumed[: len(consumed) - kept]:
            ledger.retire(key)

    def state_saved(self, state: TrainerState) -> None:
        """Note that ``state`` was stored. Shards that all stored states list as retired may now be deleted."""
        try:
            others = {
                epoch: self._retired_in(epoch)
                for epoch in self._registry.trainer_state_epochs()
                if epoch != state.epoch
            }
        except StoreError as error:
            log.warning("old traces stay until the next save, because the stored states cannot be read: %s", error)
            return
        self._retired_by_epoch = others | {state.epoch: frozenset(state.retired)}
        if len(self._retired_by_epoch) >= KEPT_TRAINER_STATES:
            retired_by_all = frozenset.intersection(*self._retired_by_epoch.values())
            self._deletable |= {key: None for key in self._ledger.retired if key in retired_by_all}

    def _retired_in(self, epoch: int) -> frozenset[str]:
        """The shards that the state of ``epoch`` lists as retired.

        A damaged state lists none, so deletions wait until the damaged state is deleted.
        """
        if epoch in self._retired_by_epoch:
            return self._retired_by_epoch[epoch]
        try:
            record = self._registry.trainer_state_record(epoch)
        except InvalidRecord:
            record = None
        return frozenset(record.retired if record else ())

    @property
    def deletes(self) -> bool:
        """Whether :meth:`delete_some` would delete something now."""
        return bool(self._deletable or self._uploads.abandoned) and self._clock() >= self._wait_until

    def delete_some(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Delete a portion of the deletable shards; returns how many.

        Nothing more is deleted once ``stopping`` returns true, because the last save comes first.
        """
        if not self.deletes:
            return 0
        abandoned = self._uploads.abandoned
        portion = list(islice(chain(self._deletable, abandoned), DELETIONS_PER_CALL))
        for number, key in enumerate(portion):
            if stopping():
                return number
            try:
                self._delete(key)
            except StoreError as error:
                log.warning("shard %s is not deleted now: %s", key, error)
                self._wait_until = self._clock() + RETRY_SECONDS
                return number
        log.info("deleted %d shards, %d remain to be deleted", len(portion), len(self._deletable) + len(abandoned))
        return len(portion)

    def _delete(self, key: str) -> None:
        """Delete a shard. A refused shard moves behind the others, because the store may refuse only this one."""
        modified = self._uploads.abandoned.pop(key, None)
        if modified is not None:
            if self._registry.orphan_written_at(key) == modified:
                self._registry.delete_shard(key)
            return
        del self._deletable[key]
        try:
            self._registry.delete_shard(key)
        except StoreError:
            self._deletable[key] = None
            raise
        self._ledger.forget(key)
