"""Store records about traces and the trainer."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from aurora_api.base import Timestamp
from aurora_protocol.draft_records import FileRef
from aurora_protocol.record import Record


class ShardManifest(Record):
    """One shard of traces; written after the shard's safetensors object, which lies beside it."""

    schema_version: Literal[1] = 1
    lineage: int = Field(ge=1)
    pod: str
    boot: str = Field(description="Random id of one engine start; with pod and seq it makes the key unique.")
    seq: int = Field(ge=0)
    file: FileRef
    requests: int = Field(ge=0)
    tokens: int = Field(ge=0, description="Positions with hidden states, prompts included.")
    answer_tokens: int = Field(ge=0, description="Tokens committed by verify rounds.")
    rounds: int = Field(ge=0)
    proposed: int = Field(ge=0, description="Draft tokens proposed.")
    accepted: int = Field(ge=0, description="Draft tokens accepted, without bonus tokens.")
    dropped_records: int = Field(ge=0, description="Rounds and prompts lost to back-pressure since the previous shard.")
    draft_versions: tuple[int, ...]
    created: Timestamp


class TrainerPhase(StrEnum):
    STARTING = "Starting"
    WAITING_FOR_TRACES = "WaitingForTraces"
    TRAINING = "Training"
    SUSPENDED = "Suspended"


class TrainerStatus(Record):
    """The trainer's progress, overwritten in place: the one mutable record, and nothing is decided from it."""

    schema_version: Literal[1] = 1
    lineage: int | None = None
    phase: TrainerPhase
    step: int = Field(ge=0)
    shards: int = Field(ge=0)
    trained_tokens: int = Field(ge=0)
    loss: float | None = None
    held_out_accept_length: float | None = None
    vocabulary_coverage: float | None = Field(
        default=None, ge=0, le=1, description="Share of held-out answer tokens that the draft's vocabulary map holds."
    )
    last_registered: int | None = None
    message: str = ""
    updated: Timestamp


class TrainerState(Record):
    """A resumable trainer state; the highest epoch wins. Consumed shards are listed so that none is trained twice.

    A consumed shard is there; a retired one may be gone, whole or in part, and its trainer is deleting it.
    """

    schema_version: Literal[1] = 1
    epoch: int = Field(ge=1)
    lineage: int = Field(ge=1)
    step: int = Field(ge=0)
    trained_tokens: int = Field(ge=0)
    consumed: tuple[str, ...] = Field(description="Manifest keys, relative to the speculator's root.")
    retired: tuple[str, ...] = Field(default=(), description="Consumed once, and needed no more.")
    forgotten: int = Field(default=0, ge=0, description="How many consumed shards were deleted and are listed no more.")
    file: FileRef
    best_accept_length: float | None = None
    registered_tokens: int = Field(default=0, ge=0)
    last_registered: int | None = None
    created: Timestamp
