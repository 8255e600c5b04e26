"""Store records about drafts: the lineage, checkpoints, registered versions and the channel."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from aurora_api.base import Model, Timestamp
from aurora_protocol.record import Record, Sha256

INITIAL_VERSION = 0
"""The lineage's initial draft: the only version served without evidence."""


class FileRef(Model):
    """One data object named by a manifest."""

    name: str = Field(description="Name relative to the manifest's own folder.")
    sha256: Sha256
    size: int = Field(ge=0, description="Bytes.")


class TensorSpec(Model):
    """Shape and dtype (safetensors spelling: BF16, F32, I64, BOOL) of one tensor of a draft checkpoint."""

    shape: tuple[int, ...]
    dtype: str


class TargetIdentity(Model):
    """Which target a draft belongs to: a draft of another target, or of another tokenizer, is another lineage."""

    model: str
    revision: str | None = None
    config_sha256: Sha256 = Field(description="Digest of the target's config.json.")
    tokenizer_sha256: Sha256 = Field(description="Digest of the target's tokenizer.json.")
    hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)


class Lineage(Record):
    """What all drafts of one line of descent share, and what a running SGLang cannot change: shapes and types. Of the
    vocabulary map the size is fixed, not what it holds."""

    schema_version: Literal[1] = 1
    number: int = Field(ge=1)
    target: TargetIdentity
    architecture: str
    draft_vocab_size: int = Field(gt=0)
    aux_layers: tuple[int, ...] = Field(description="Target layers whose outputs feed the draft (SGLang numbering).")
    tensors: dict[str, TensorSpec] = Field(description="Every tensor of model.safetensors, by name.")
    created: Timestamp


class CheckpointManifest(Record):
    """One draft checkpoint; written after its files."""

    schema_version: Literal[1] = 1
    lineage: int = Field(ge=1)
    version: int = Field(ge=0)
    parent: int | None = None
    digest: Sha256 = Field(description="Digest of model.safetensors: the identity of the weights.")
    files: tuple[FileRef, ...]
    step: int = Field(ge=0, description="Optimizer steps behind these weights.")
    trained_tokens: int = Field(ge=0, description="Traced positions seen for the first time.")
    provenance: dict[str, str] = Field(default_factory=dict, description="Versions and settings of the trainer.")
    created: Timestamp


class Registration(Record):
    """A version offered for validation; the number in its key is the lock."""

    schema_version: Literal[1] = 1
    version: int = Field(ge=0)
    lineage: int = Field(ge=1)
    checkpoint: str = Field(description="Key of the checkpoint's folder, relative to the speculator's root.")
    digest: Sha256
    held_out_accept_length: float | None = Field(
        default=None, description="Simulated on held-out traces, bonus included."
    )
    trained_tokens: int = Field(ge=0)
    created: Timestamp


class ChannelReason(StrEnum):
    INITIAL = "Initial"
    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"
    PINNED = "Pinned"
    REFUSED = "Refused"
    """Nothing changed but ``rejected``."""


class Channel(Record):
    """Which version is active. The highest epoch wins; only the operator writes it."""

    schema_version: Literal[1] = 1
    epoch: int = Field(ge=1)
    lineage: int = Field(ge=1)
    active: int = Field(ge=0)
    previous: int | None = None
    reason: ChannelReason
    evidence: str | None = Field(default=None, description="Key of the evidence behind a promotion.")
    rejected: tuple[int, ...] = Field(
        default=(), description="Versions that live traffic or a person refused, whatever their evidence says."
    )
    message: str = Field(default="", description="Why, in plain words.")
    created: Timestamp
