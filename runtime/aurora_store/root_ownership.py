"""Which speculator owns a root, and the store of the pods, in which only the owner writes.

Each record of the channel names the owner. The first record makes its writer the owner. Another speculator with the
same ``spec.store.path`` takes the root over with the next record, create-once, which names the new owner
(the operator's ``plan.channel`` says when).

Why the channel: an operator decides by writing the next epoch. A former owner that has not seen the takeover loses this
race, because the takeover holds the epoch. A former owner that has seen the takeover stops. So two owners never advance
the channel at the same time.

Invariants:

- Before a pod writes, the newest channel record is known, and names the pod's speculator as the root's owner. The
  record is read right before a write that decides something (lineage, version, evidence, trainer state). Before other
  writes, the reading is at most :data:`MAX_AGE_SECONDS` old.
- Before the channel's first record nobody owns the root, and every speculator with this path may write. What is
  written then is create-once.
- When the channel is gone, the root was deleted or emptied, and pods write nothing. A process that may start before the
  channel's first record notices this only if it has seen a record.
- Reads are never refused. The pods of a former owner go on serving.

A takeover may come between the look and the write. Such a late write harms nothing: a late version is measured like any
other, a late trainer state is one that the new trainer can resume from, and a late shard is one more shard.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aurora_protocol.draft_records import Channel, ChannelReason, RootOwner
from aurora_protocol.errors import InvalidRecord
from aurora_store.errors import NotRootOwner, StoreError, bounded_text
from aurora_store.keys import Keys, in_sequence, record_numbers
from aurora_store.objects import ObjectStore, StoreConfig

MAX_NAME_CHARACTERS: Final = 400
"""Longest text that names a speculator. A namespace, a name and a part of a uid have 330 at most."""
MAX_AGE_SECONDS: Final = 30.0
WRITES: Final = frozenset({"put", "create", "upload", "delete"})
"""The operations of a pod that change the store. Their subject is the key."""
DECIDING_PREFIXES: Final = (Keys.LINEAGE, Keys.REGISTRY, Keys.EVIDENCE, Keys.TRAINER_STATE)


def write_refusal(channel: Channel | None, root: str, owner: str | None) -> str:
    """Why the speculator with the owner id ``owner`` may not write below ``root``. Empty when it may."""
    if channel is None:
        return ""
    if channel.reason is ChannelReason.DELETING:
        return f"the root {root} is being deleted with its speculator (deletionPolicy: Delete)"
    return "" if channel.owner.id == owner else owned_text(channel, root)


def owned_text(channel: Channel, root: str) -> str:
    """Which speculator owns the root, and since when."""
    owner = channel.owner
    return f"the root {root} belongs to AuroraSpeculator {owner_text(owner)} since {owner.since:%Y-%m-%d %H:%M} UTC"


def owner_text(owner: RootOwner) -> str:
    """Namespace, name and the beginning of the uid of an owner. Untrusted text, cut."""
    return bounded_text(f"{owner.namespace}/{owner.name} (uid {owner.id}…)", MAX_NAME_CHARACTERS)


class FencedObjectStore(ObjectStore):
    """An :class:`ObjectStore` whose writes raise :class:`NotRootOwner` once the root has another owner."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        attempts: int = 5,
        clock: Callable[[], float] = time.monotonic,
        expects_channel: bool = False,
    ) -> None:
        """``expects_channel``: the process starts after the channel's first record, so an empty channel was deleted."""
        super().__init__(config, attempts=attempts)
        self._expects_channel = expects_channel
        self._clock, self._lock = clock, threading.Lock()
        self._channel: Channel | None = None
        self._channel_vanished = False
        self._looked_at_seconds = -math.inf

    @contextmanager
    def _call(self, operation: str, subject: str) -> Iterator[None]:
        if operation in WRITES:
            self._check(subject)
        with super()._call(operation, subject):
            yield

    def _check(self, key: str) -> None:
        """Raise :class:`NotRootOwner` unless this speculator owns the root."""
        with self._lock:
            if key.startswith(DECIDING_PREFIXES) or self._clock() - self._looked_at_seconds >= MAX_AGE_SECONDS:
                self._look()
            if self._refusal():
                self._look()  # the operator may have taken the root over meanwhile
            if refusal := self._refusal():
                raise NotRootOwner(f"{key} is not written: {refusal}")

    def _refusal(self) -> str:
        root = self.config.root
        if self._channel_vanished:
            return f"the channel of the root {root} has no record: the root was deleted or emptied"
        return write_refusal(self._channel, root, self.config.owner)

    def _look(self) -> None:
        """Read the newest channel record, unless it is known already.

        The deletion of a root removes the newest record last. So when the known record is gone and an older one is
        left, somebody removed the known record alone, perhaps because it was forged. The older record then counts.
        """
        known = self._channel.epoch if self._channel is not None else 0
        epochs = in_sequence(record_numbers(self.list(Keys.CHANNEL), Keys.CHANNEL))
        self._channel_vanished = (self._expects_channel or self._channel is not None) and not epochs
        try:
            if epochs and epochs[-1] != known:
                self._channel = Channel.from_json(self.get(Keys.channel(epochs[-1])))
        except InvalidRecord as error:
            text = f"{Keys.channel(epochs[-1])} does not tell who owns the root: {error}"
            raise StoreError(bounded_text(text)) from error
        self._looked_at_seconds = self._clock()
