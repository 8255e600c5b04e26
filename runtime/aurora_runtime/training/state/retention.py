"""Keeps the store bounded: traces beyond the limit are deleted, oldest first, by the one who knows what was learnt.

The held-out set, the prompts of measurements and most of what is replayed come from the newest shards, so those are
kept. Invariants:

- a consumed shard is deleted only once every stored trainer state lists it as retired: a trainer that resumes from any
  of them neither learns from it twice nor misses it;
- whatever moment a kill chooses, no manifest names data that are gone, and what is half deleted is named by the state;
- the newest consumed shards stay, as many as replay holds, whatever else has to go;
- data without a manifest go only when nobody touched them for long, and a look just before finds them so. An agent that
  finishes such an upload in the instant between that look and the deletion loses it: a damaged shard, which is skipped;
- deleting is done in small portions, and a store that refuses delays it and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from typing import Final

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import TrainerState
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_store import Registry
from aurora_store.errors import StoreError
from aurora_store.trainer_store import KEPT_TRAINER_STATES

LEAST_SHARDS: Final = 4096
"""May be kept whatever their size. Many more than a measurement looks through for its prompts."""
PORTION: Final = 32
RETRY_S: Final = 60.0
BARE_S: Final = 3600.0
"""Data that got no manifest for so long never will: an agent that lives tries again every few minutes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much is kept, in bytes of shards and in their number.

    ``replay`` of it, and half of their number, are consumed shards, so that a long backlog does not cost the memory of
    what was learnt. Their number counts because each costs a place in listings and in the trainer's state.
    """

    total: int
    replay: int
    shards: int

    @classmethod
    def of(cls, total: int, replay: int) -> Limits:
        """One shard per MiB: a pod that is asked a little closes small ones, three a minute."""
        return cls(total, replay, max(LEAST_SHARDS, total >> 20))


class Retention:
    """Decides what goes at each look into the store, and deletes it bit by bit between pieces of work."""

    def __init__(
        self,
        registry: Registry,
        ledger: ShardLedger,
        limits: Limits,
        *,
        suspended: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``suspended``: no state is saved, so what was consumed stays."""
        self._registry, self._ledger, self._limits = registry, ledger, limits
        self._suspended, self._clock = suspended, clock
        self._states: dict[int, frozenset[str]] = {}
        self._going: dict[str, None] = {}
        self._bare: dict[str, tuple[datetime, float]] = {}
        self._abandoned: dict[str, datetime] = {}
        self._wait_until = 0.0
        self.unread = 0

    def pending(self) -> list[str]:
        """Look: the shards to learn from, oldest first, without those for which there is no room."""
        ledger, limits = self._ledger, self._limits
        new = tuple(key for key in ledger.pending() if key not in self._going)
        standing, number = limits.replay, limits.shards // 2
        if self._suspended:
            standing = max(standing, sum(ledger.size(key) for key in ledger.consumed))
            number = max(number, limits.shards - len(ledger.consumed))
        fit = ledger.newest(new, max(limits.total - standing, limits.replay))
        kept = min(fit, number)
        bound = f"{limits.total / (1 << 30):g} GiB" if fit <= number else f"{limits.shards} shards"
        self._leave_out(new[: len(new) - kept], bound)
        new = new[len(new) - kept :]
        if not self._suspended:
            self._retire(limits.total - sum(ledger.size(key) for key in new), limits.shards - kept)
        self._sweep(ledger.stored.orphans)
        return list(new)

    def _leave_out(self, keys: tuple[str, ...], bound: str) -> None:
        """No state names them, so they may go at once. ``bound`` is what they are beyond."""
        if keys:
            self.unread += len(keys)
            log.warning(
                "%d shards go unread, %d since the start: traces came faster than they were learnt from, and"
                " training.traceStorageLimit allows %s",
                len(keys),
                self.unread,
                bound,
            )
            self._going |= dict.fromkeys(keys)

    def _retire(self, room: int, shards: int) -> None:
        ledger, consumed = self._ledger, self._ledger.consumed
        kept = min(ledger.newest(consumed, max(room, self._limits.replay)), shards)
        for key in consumed[: len(consumed) - kept]:
            ledger.retire(key)

    def _sweep(self, bare: dict[str, datetime]) -> None:
        """Uploads that nobody will finish: untouched between two looks that lie far apart by this process's clock."""
        now = self._ledger.looked
        seen = {key: (modified, now) for key, modified in bare.items()}
        self._bare = {
            key: self._bare[key] if key in self._bare and self._bare[key][0] == modified else (modified, since)
            for key, (modified, since) in seen.items()
        }
        self._abandoned = {key: modified for key, (modified, since) in self._bare.items() if now - since >= BARE_S}

    def saved(self, state: TrainerState) -> None:
        """``state`` is stored now: what all stored states call retired may go."""
        try:
            others = {
                epoch: self._retired_by(epoch)
                for epoch in self._registry.trainer_state_epochs()
                if epoch != state.epoch
            }
        except StoreError as error:
            log.warning("old traces stay until the next save: %s", error)
            return
        self._states = others | {state.epoch: frozenset(state.retired)}
        if len(self._states) >= KEPT_TRAINER_STATES:
            settled = frozenset.intersection(*self._states.values())
            self._going |= {key: None for key in self._ledger.retired if key in settled}

    def _retired_by(self, epoch: int) -> frozenset[str]:
        """A damaged state calls nothing retired, so that it delays until the store is rid of it."""
        if epoch in self._states:
            return self._states[epoch]
        try:
            found = self._registry.trainer_state_record(epoch)
        except InvalidRecord:
            found = None
        return frozenset(found.retired if found else ())

    def tick(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Delete a few of those that may go, none once ``stopping``: the last save comes first; how many went."""
        if not (self._going or self._abandoned) or self._clock() < self._wait_until:
            return 0
        portion = list(islice(chain(self._going, self._abandoned), PORTION))
        for number, key in enumerate(portion):
            if stopping():
                return number
            try:
                self._delete(key)
            except StoreError as error:
                log.warning("old traces are not deleted now: %s", error)
                self._wait_until = self._clock() + RETRY_S
                return number
        log.info("deleted %d shards, %d are left to go", len(portion), len(self._going) + len(self._abandoned))
        return len(portion)

    def _delete(self, key: str) -> None:
        """One that cannot be deleted waits behind the others, or for the next look: it may be this one alone."""
        modified = self._abandoned.pop(key, None)
        if modified is not None:
            if self._registry.orphan_written_at(key) == modified:
                self._registry.delete_shard(key)
            return
        del self._going[key]
        try:
            self._registry.delete_shard(key)
        except StoreError:
            self._going[key] = None
            raise
        self._ledger.forget(key)
