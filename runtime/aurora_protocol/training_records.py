"""Store records about traces and the trainer.

Why: a trainer that restarts must neither lose a shard nor train on a shard twice. Its state lists the shards behind the
weights that it holds.

Invariants: every record is create-once except :class:`TrainerStatus`, which is overwritten in place and decides
nothing about drafts: it can only delay a measurement. A later fact is a new record with a higher number. Data is
written before the record that names it. Token ids live only in shards, never in a record.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from aurora_api.base import Timestamp
from aurora_protocol.draft_records import FileRef
from aurora_protocol.record import Count, FileName, RecordNumber, StoredRecord


class ShardManifest(StoredRecord):
    """One shard, a file of traces. Written after the shard's safetensors file, which lies beside the manifest."""

    lineage: RecordNumber = Field(ge=1, description="Number of the lineage whose drafts were served.")
    pod: FileName = Field(description="The inference pod that wrote the shard.")
    boot: FileName = Field(description="Random id of one engine start. Pod, boot and seq make the shard's key unique.")
    seq: RecordNumber = Field(description="Number of the shard within one engine start, from 0.")
    file: FileRef = Field(description="The shard's data.")
    requests: Count = Field(description="Requests with a trace in the shard.")
    tokens: Count = Field(description="Positions with hidden states, prompts included.")
    answer_tokens: Count = Field(description="Tokens committed by verify rounds.")
    rounds: Count = Field(description="Verify rounds.")
    proposed: Count = Field(description="Tokens that the draft proposed. Those of lookup do not count.")
    accepted: Count = Field(description="Tokens of the draft that were accepted, without bonus tokens.")
    dropped_records: Count = Field(description="Rounds and prompts dropped under load since the previous shard.")
    created: Timestamp = Field(description="When the shard was written.")


class TrainerPhase(StrEnum):
    """The trainer's current activity."""

    STARTING = "Starting"
    WAITING_FOR_TRACES = "WaitingForTraces"
    TRAINING = "Training"


class TrainerStatus(StoredRecord):
    """The trainer's progress, for people. It decides nothing about drafts. It can only delay a measurement.

    The record is overwritten in place. A measurement waits while it says that there are too few held-out requests.
    """

    lineage: RecordNumber | None = Field(
        default=None, description="Number of the lineage. None before the lineage exists."
    )
    phase: TrainerPhase = Field(description="The trainer's current activity.")
    step: Count = Field(description="Optimizer steps so far.")
    shards: Count = Field(description="Shards trained on so far.")
    trained_tokens: Count = Field(description="Traced positions that training saw for the first time, in tokens.")
    loss: float | None = Field(default=None, description="Recent training loss.")
    held_out_acceptance_length: float | None = Field(
        default=None, description="Acceptance length simulated on held-out traces, bonus token included."
    )
    held_out_requests: Count | None = Field(
        default=None,
        description="Held-out requests that a measurement could use, one of each conversation. None: not counted, or as"
        " many as the trainer counts or more.",
    )
    last_registered: RecordNumber | None = Field(default=None, description="The version registered last.")
    pending_shards: Count = Field(default=0, description="Shards of new traces that wait to be trained.")
    message: str = Field(default="", description="Details in plain words.")
    updated: Timestamp = Field(description="When this record was written.")


class TrainerState(StoredRecord):
    """A state from which training can resume. The record with the highest epoch wins.

    A consumed shard still exists. The trainer deletes retired shards, so a retired shard may be gone, whole or in part.
    """

    epoch: RecordNumber = Field(ge=1, description="Number of the saved state, from 1.")
    lineage: RecordNumber = Field(ge=1, description="Number of the lineage.")
    step: Count = Field(description="Optimizer steps so far.")
    trained_tokens: Count = Field(description="Traced positions that training saw for the first time, in tokens.")
    consumed: tuple[str, ...] = Field(
        description="Manifest keys of the shards trained on, relative to the speculator's root. None is trained twice."
    )
    retired: tuple[str, ...] = Field(
        default=(), description="Manifest keys of the consumed shards that are no longer needed."
    )
    forgotten: Count = Field(
        default=0, description="Number of consumed shards that were deleted and are no longer listed."
    )
    file: FileRef = Field(description="Weights and optimizer state.")
    created: Timestamp = Field(description="When the state was saved.")
