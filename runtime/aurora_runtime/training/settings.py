"""The trainer's policy: its bounds and intervals.

The size of the replay buffer follows the target. Constants that belong to one algorithm, such as the half-life of a
replay weight, are in that algorithm's module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

REPLAY_BYTES: Final = 1 << 30
REPLAY_BYTES_PER_WIDTH: Final = 1 << 20
"""Bytes of the replay buffer for each element of the target's hidden states: 4 GiB at 4096, about 340,000 positions
in 8 bits. A target with less than 1024 gets :data:`REPLAY_BYTES`."""


@dataclass(frozen=True)
class TrainingPolicy:
    """Bounds of the trainer's memory, and how often the trainer polls and saves."""

    replay_bytes: int = REPLAY_BYTES
    """Bytes of examples that the replay buffer holds in host memory. Retention keeps at least this many bytes of
    consumed shards in the store, because a restart fills the buffer from them."""
    held_out_requests: int = 48
    """Bound of the held-out set, which every comparison of two drafts evaluates."""
    counted_requests: int = 4096
    """Bound of the count of held-out requests that a measurement can use: what it needs at the highest concurrency that
    the resource admits. The set keeps 16 bytes of each such request in the
    trainer's state."""
    held_out_bytes: int = 2 << 30
    """Bound of the held-out set in host memory."""
    prefix_bank_bytes: int = 256 << 20
    """Bound of the prefix bank: the hidden states that are kept to complete later traces."""
    prefix_bank_traces: int = 256
    """Bound of the number of traces in the prefix bank; each new trace is compared with all of them."""
    prefetched_shards: int = 3
    """Bound of the shards fetched in advance: the next shard and the two after it. More would only take memory, because
    training on a shard takes longer than fetching one."""
    prefetched_bytes: int = 2 << 30
    """Bound of the same shards in bytes. The next shard is always fetched."""
    poll_seconds: float = 2.0
    """Shortest wait between two listings of the store while there is nothing to train on."""
    max_poll_seconds: float = 30.0
    """Longest such wait. The wait doubles up to it while nothing new arrives. It is the longest time until the trainer
    sees the first shard after a pause of the traffic, if a listing takes less than 1.5 s. It also delays the status:
    see ``idle_status_interval_seconds``."""
    poll_hold_seconds: float = 300.0
    """The wait stays the shortest one until nothing new arrived for this long. A start of the pods within this time and
    a short pause of the traffic then delay no shard. Pods close a shard after 20 s, which is shorter."""
    shards_per_listing: int = 64
    """Shards trained between two listings. In a long backlog the trainer lists again in between, because only a
    listing lets retention delete the oldest untrained shards that the store has no room for."""
    save_interval_seconds: float = 600.0
    """Time from the end of a save to the next one. A kill loses the training since the last save, and the restarted
    trainer trains on the same shards again. A state of a draft for a target of width 4096 has 3.4 GB, so 0.5 TB a
    day are written."""
    status_interval_seconds: float = 4.0
    """Time between two writes of the trainer's status while it trains."""
    idle_status_interval_seconds: float = 15.0
    """The same while the trainer waits for traces, checked after each wait, so a status is at most 45 s old where a
    listing is quick. The operator takes a trainer for silent after five minutes. A status with another content is
    written after the present wait."""
    stop_seconds: float = 50.0
    """The process exits at the latest this long after SIGTERM, within the pod's grace period. It saves its state if the
    store answers in time."""

    @classmethod
    def of(cls, width: int) -> Self:
        """The policy for a target whose hidden states have ``width`` elements."""
        return cls(replay_bytes=max(REPLAY_BYTES, width * REPLAY_BYTES_PER_WIDTH))


DEFAULT_POLICY: Final = TrainingPolicy()
