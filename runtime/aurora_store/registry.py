"""All records of one speculator behind one object: drafts, shards, evidence and the trainer's progress.

Why: a process opens the store once and uses records of several kinds.

Invariants: a reader gets validated records, and the data that a record names was written before the record. Each part
writes only its own records.
"""

from __future__ import annotations

from aurora_store.records.draft_store import DraftStore
from aurora_store.records.evidence_store import EvidenceStore
from aurora_store.records.shard_store import ShardStore
from aurora_store.records.trainer_store import TrainerStore


class Registry(DraftStore, ShardStore, EvidenceStore, TrainerStore):
    """Reads and writes the records of one speculator."""
