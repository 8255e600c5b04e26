"""Finds shards that are older than ``training.traceMaxAgeSeconds``.

The age counts from the earlier of two times: when the store got the shard, and the end of the hour in its key, which
is the hour in which the pod wrote it. The first changes when somebody copies a bucket or rewrites a shard, and a shard
that waited in a pod during an outage has a late one. So a shard is found at most an hour after its age. Times are
compared with this process's clock.

Invariant: a shard that is found is never trained on again, whatever becomes of its deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from aurora_runtime.pod_registry import ShardListing
from aurora_store.keys import shard_hour

HOUR: Final = timedelta(hours=1)


def written_before(key: str, listed: datetime | None) -> datetime | None:
    """A time at which the shard's traces were complete. None: neither the key nor the listing shows one."""
    hour = shard_hour(key)
    times = [time for time in (listed, hour + HOUR if hour else None) if time is not None]
    return min(times, default=None)


def utc_clock() -> datetime:
    return datetime.now(UTC)


class AgeLimit:
    """The longest time for which traces are kept."""

    def __init__(self, max_age: timedelta | None, clock: Callable[[], datetime] = utc_clock) -> None:
        """Without ``max_age`` nothing is too old."""
        self._max_age, self._clock = max_age, clock

    @property
    def is_set(self) -> bool:
        return self._max_age is not None

    def expired(self, listing: ShardListing, others: Iterable[str] = ()) -> list[str]:
        """The shards of ``listing`` that are too old, and those of ``others``, which the listing may lack."""
        if self._max_age is None:
            return []
        oldest = self._clock() - self._max_age
        keys = dict.fromkeys([*listing.data_bytes, *others])
        times = ((key, written_before(key, listing.written.get(key))) for key in keys)
        return [key for key, time in times if time is not None and time <= oldest]
