"""Deletes the weights of drafts that nobody needs any more. Otherwise the store would grow by a draft a candidate.

These versions keep their weights:

- the initial draft, to which pods can always return,
- ``training.draftHistoryLimit`` drafts: the active one, the previous one, and the newest that passed their measurement
  and were not rejected by live traffic or a person,
- the newest version that was measured, and all after it, because they may still be measured,
- a version whose weights were stored less than a day ago, or that is not registered.

Invariants: the record that a version expired is written before its weights are deleted, and they are deleted at a later
look. So the operator, which refuses to pin an expired version, has seen the record by then. The weights stay while the
channel names the version as active or previous, also after the record. A look that cannot read everything deletes
nothing that it has not read about.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final

from aurora_protocol.draft_records import INITIAL_VERSION, Channel
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.state.trace_age import utc_clock
from aurora_store import Keys
from aurora_store.errors import StoreError
from aurora_store.keys import checkpoint_version
from aurora_store.objects import ObjectInfo

LEAST_AGE: Final = timedelta(days=1)
LOOK_SECONDS: Final = 3600.0
"""Time between two looks. The operator reads the records about every 30 s."""
log = logging.getLogger(__name__)


class DraftExpiry:
    """Looks now and then which drafts expire, and deletes the weights of those that expired before the last look."""

    def __init__(
        self,
        registry: PodRegistry,
        limit: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = utc_clock,
    ) -> None:
        """``limit``: ``training.draftHistoryLimit``."""
        self._registry, self._limit, self._clock, self._utc = registry, limit, clock, utc
        self._next_look = -math.inf
        self._expired: frozenset[int] = frozenset()
        """The versions that had expired at the last look."""
        self._passed: set[int] = set()

    def look(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Delete and expire what is due, once in :data:`LOOK_SECONDS`. A fault of the store delays it to the next look.

        Call this between two pieces of work. Nothing more is deleted once ``stopping`` returns true.
        """
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + LOOK_SECONDS
        try:
            self._look(stopping)
        except (StoreError, InvalidRecord) as error:
            log.warning("no more drafts expire now: %s", error)

    def _look(self, stopping: Callable[[], bool]) -> None:
        registry = self._registry
        files = defaultdict[int, list[ObjectInfo]](list)
        for item in registry.objects.list_objects(Keys.CHECKPOINTS):
            if (version := checkpoint_version(item.key.rpartition("/")[0] + "/")) is not None:
                files[version].append(item)
        expired, channel = registry.expired_versions(), registry.channel()
        if channel is None:
            return
        deletable = (self._expired & expired & files.keys()) - {channel.active, channel.previous}
        stored = (registry.registered_versions() & files.keys()) - expired
        for version in sorted(stored - self._kept(channel, stored)):
            if max(item.modified for item in files[version]) <= self._utc() - LEAST_AGE:
                registry.expire(version, self._utc())
                expired |= {version}
                log.info("version %d expired; its weights are deleted in %.0f s", version, LOOK_SECONDS)
        self._expired = expired
        self._delete((item.key for version in sorted(deletable) for item in files[version]), stopping)

    def _kept(self, channel: Channel, stored: frozenset[int]) -> set[int]:
        """Those of the versions ``stored`` that keep their weights, whatever their age."""
        measured = max(self._registry.measured_versions() & stored, default=INITIAL_VERSION)
        undecided = {version for version in stored if version >= measured}
        serving = [version for version in (channel.active, channel.previous) if version is not None]
        kept = list(dict.fromkeys(serving))
        for version in sorted(stored - undecided - {*kept, *channel.rejected}, reverse=True):
            if len(kept) < self._limit and self._has_passed(version):
                kept.append(version)
        return {INITIAL_VERSION, *undecided, *kept}

    def _has_passed(self, version: int) -> bool:
        if version not in self._passed and self._registry.has_passed(version):
            self._passed.add(version)
        return version in self._passed

    def _delete(self, keys: Iterable[str], stopping: Callable[[], bool]) -> None:
        """Delete the files of drafts, all manifests first, so that none names missing data."""
        for key in sorted(keys, key=lambda key: (not key.endswith("/manifest.json"), key)):
            if stopping():
                return
            self._registry.objects.delete(key)
