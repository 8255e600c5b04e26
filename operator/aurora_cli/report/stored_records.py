"""The stored records that a report is made of, already parsed.

Invariant: each collection has an upper bound, and what it leaves out is said in ``left_out``, so that a page of a large
store stays small and never looks complete when it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aurora_protocol.draft_records import Channel, CheckpointManifest, Registration
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.training_records import ShardManifest, TrainerStatus

MAX_VERSIONS: Final = 60
"""Newest versions of which registration, manifest and evidence are read."""
MAX_EARLIER_ATTEMPTS: Final = 60
"""Newest attempts at measuring that are read besides the last one of each version."""
MAX_DECISIONS: Final = 200
"""Newest records of the channel that are read."""
MAX_SHARDS: Final = 240
"""Manifests of shards that are read, evenly spread over all that are stored."""
MAX_LEFT_OUT: Final = 30
"""Most sentences of ``left_out``."""


@dataclass(frozen=True)
class StoredRecords:
    """What the store says about one speculator. All of it is empty when the store was not read."""

    registrations: tuple[Registration, ...] = ()
    """By version."""
    checkpoints: Mapping[int, CheckpointManifest] = field(default_factory=dict)
    """Manifest by version."""
    evidence: tuple[Evidence, ...] = ()
    """The last attempt at measuring each version, by version."""
    channel: tuple[Channel, ...] = ()
    """By epoch."""
    shards: tuple[ShardManifest, ...] = ()
    """By the time at which they were written."""
    trainer: TrainerStatus | None = None
    earlier_evidence: tuple[Evidence, ...] = ()
    """The attempts before the last one of each version, by version and attempt."""
    left_out: tuple[str, ...] = ()
    """What was not read, and why: one sentence each."""
    was_read: bool = True
    """False when the user asked for a report from the status alone."""
