"""Store records about drafts: the lineage, checkpoints, registered versions and the channel.

Why: the trainer, the validator, the pods and the operator agree through these records on which drafts exist and which
one is served.

Invariants: every record is create-once. A later fact is a new record with a higher number (version, epoch), and the
highest number wins. Data is written before the record that names it. A root has one lineage for ever, because all that
defines a lineage is immutable in the resource.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from aurora_api.base import Model, Timestamp
from aurora_protocol.record import Count, FileName, RecordNumber, Sha256, StoredRecord
from aurora_protocol.rope_scaling import RopeScaling

LINEAGE_NUMBER: Final = 1
"""Number of a root's only lineage, in keys and records."""
INITIAL_VERSION = 0
"""Version of the lineage's initial draft, the only version that is served without evidence."""

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
DRAFT_FILES = (CONFIG_FILE, WEIGHTS_FILE)
"""The files of a draft's checkpoint, beside its manifest."""


class FileRef(Model):
    """One data object that a record names."""

    name: FileName = Field(description="File name, relative to the folder of the record that names it.")
    sha256: Sha256 = Field(description="Digest of the file.")
    size: Count = Field(description="Size of the file in bytes.")


class TensorSpec(Model):
    """Shape and number format of one tensor of a draft checkpoint."""

    shape: tuple[int, ...] = Field(description="Sizes of the tensor's dimensions.")
    dtype: str = Field(description="Number format as safetensors spells it: BF16, F32, I64 or BOOL.")


class TargetIdentity(Model):
    """The target that a draft belongs to. Another target or another tokenizer needs another AuroraSpeculator."""

    model: str = Field(description="Hugging Face name or path of the target.")
    revision: str | None = Field(default=None, description="Revision of the target's repository.")
    config_sha256: Sha256 = Field(description="Digest of the target's config.json.")
    tokenizer_sha256: Sha256 = Field(description="Digest of the target's tokenizer.json.")
    hidden_size: int = Field(gt=0, description="Width of the target's hidden states.")
    vocab_size: int = Field(gt=0, description="Number of tokens in the target's vocabulary.")


class DraftSizes(Model):
    """Sizes of a draft that neither its target nor its tensors' shapes tell. They are part of its ``config.json``."""

    intermediate_size: int = Field(gt=0, le=1 << 24, description="Width of the feed-forward layer.")
    heads: int = Field(gt=0, le=1 << 16, description="Attention heads.")
    kv_heads: int = Field(gt=0, le=1 << 16, description="Attention heads with keys and values of their own.")
    head_dim: int = Field(gt=0, le=1 << 16, description="Width of an attention head.")
    rotary_dim: int | None = Field(
        default=None,
        gt=0,
        le=1 << 16,
        description="Rotated part of a head. None: the whole head.",
    )
    rms_norm_eps: float = Field(gt=0, le=0.1, description="Term that keeps the norms finite.")
    rope_theta: float = Field(gt=0, le=1e12, description="Base of the rotary position embedding.")
    rope_scaling: RopeScaling | None = Field(
        default=None,
        description="Scaling of the rotary position embedding for long contexts. None: no scaling.",
    )
    max_positions: int = Field(gt=0, le=1 << 30, description="Longest sequence in tokens.")


class InitialHead(Model):
    """The published head that a lineage started from."""

    model: str = Field(description="Hugging Face name or path of the head.")
    revision: str | None = Field(default=None, description="Revision of the head's repository.")
    sha256: Sha256 = Field(description="Digest of the head's weights, as they were published.")


class Lineage(StoredRecord):
    """All that the drafts of one line of descent share and that a running SGLang cannot change: shapes and types.

    The size of the vocabulary map is fixed. The tokens that the map holds may change from version to version.
    """

    number: RecordNumber = Field(ge=1, description="Number of the lineage: 1.")
    target: TargetIdentity = Field(description="The target of all drafts of this lineage.")
    architecture: str = Field(description="Architecture of the drafts, for example EAGLE3.")
    draft_vocab_size: int = Field(gt=0, description="Number of tokens in the drafts' vocabulary.")
    aux_layers: tuple[int, ...] = Field(description="Target layers whose outputs feed the draft (SGLang's numbering).")
    tensors: dict[str, TensorSpec] = Field(description="Every tensor of model.safetensors, by name.")
    draft_sizes: DraftSizes = Field(
        validation_alias="draft", serialization_alias="draft", description="Sizes of all drafts of this lineage."
    )
    initial: InitialHead | None = Field(
        default=None,
        description="The published head that training began with. None: it began with the target's weights.",
    )
    created: Timestamp = Field(description="When the lineage was created.")


class CheckpointManifest(StoredRecord):
    """The files of one draft checkpoint. Written after the files."""

    lineage: RecordNumber = Field(ge=1, description="Number of the lineage.")
    version: RecordNumber = Field(description="Version of the draft.")
    parent: RecordNumber | None = Field(
        default=None, description="The version that the trainer had registered before, if any."
    )
    digest: Sha256 = Field(description="Digest of model.safetensors, which identifies the weights.")
    files: tuple[FileRef, ...] = Field(description="All files of the checkpoint.")
    step: Count = Field(description="Optimizer steps behind these weights.")
    trained_tokens: Count = Field(description="Traced positions that training saw for the first time, in tokens.")
    provenance: dict[str, str] = Field(default_factory=dict, description="Versions and settings of the trainer.")
    created: Timestamp = Field(description="When the checkpoint was written.")


class Registration(StoredRecord):
    """A version offered for validation. The number in the record's key is the lock: one writer can take a version."""

    version: RecordNumber = Field(description="The version, unique within the speculator.")
    lineage: RecordNumber = Field(ge=1, description="Number of the lineage.")
    checkpoint: str = Field(description="Key of the checkpoint's folder, relative to the speculator's root.")
    digest: Sha256 = Field(description="Digest of the weights, as in the checkpoint's manifest.")
    held_out_acceptance_length: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Acceptance length simulated on held-out traces, bonus token included.",
    )
    trained_tokens: Count = Field(description="Traced positions that training saw for the first time, in tokens.")
    created: Timestamp = Field(description="When the version was registered.")


class ExpiredDraft(StoredRecord):
    """The weights of a version are deleted on purpose. The record comes before the deletion, and the version's
    registration and evidence stay."""

    version: RecordNumber = Field(description="The version.")
    created: Timestamp = Field(description="When the version expired.")


class ChannelReason(StrEnum):
    """Why the channel advanced to a new epoch."""

    INITIAL = "Initial"
    """The first epoch: the initial draft is served."""
    PROMOTED = "Promoted"
    """A candidate passed the gate and its rollout."""
    ROLLED_BACK = "RolledBack"
    """Live traffic rejected the active version."""
    PINNED = "Pinned"
    """A person chose the version."""
    REFUSED = "Refused"
    """Only ``rejected`` changed: a version must not be offered again."""
    RESTORED = "Restored"
    """Another speculator with the same ``spec.store.path`` took the root over. The versions stay as they are."""
    DELETING = "Deleting"
    """The root's owner was deleted with ``deletionPolicy: Delete``. The objects are being deleted."""


class RootOwner(Model):
    """The speculator that owns a root."""

    id: str = Field(description="The first 8 characters of the speculator's uid.")
    namespace: str = Field(description="Namespace of the speculator.")
    name: str = Field(description="Name of the speculator.")
    since: Timestamp = Field(description="When the speculator began the root, or took it over.")


class Channel(StoredRecord):
    """Which version is active, and which speculator owns the root. The record with the highest epoch wins.

    Only the owner's operator writes this record. Another speculator takes the root over by writing the next epoch.
    """

    epoch: RecordNumber = Field(
        ge=1, description="Number of the channel record, from 1. Pods refuse orders of a lower epoch."
    )
    lineage: RecordNumber = Field(ge=1, description="Number of the active version's lineage.")
    active: RecordNumber = Field(description="The version that pods serve.")
    previous: RecordNumber | None = Field(default=None, description="The version to roll back to.")
    active_digest: Sha256 | None = Field(
        default=None, description="Digest of the active version's weights. None: not known."
    )
    previous_digest: Sha256 | None = Field(
        default=None, description="Digest of the previous version's weights. None: not known."
    )
    reason: ChannelReason = Field(description="Why this epoch began.")
    evidence: str | None = Field(default=None, description="Key of the evidence behind a promotion.")
    rejected: tuple[RecordNumber, ...] = Field(
        default=(), description="Versions rejected by live traffic or by a person, whatever their evidence says."
    )
    message: str = Field(default="", description="Why this epoch began, in plain words.")
    owner: RootOwner = Field(description="The speculator that owns the root.")
    created: Timestamp = Field(description="When the epoch began.")

    def digest_of(self, version: int) -> str | None:
        """The digest of the weights of ``version``, where this record names it."""
        if version == self.active:
            return self.active_digest
        return self.previous_digest if version == self.previous else None
