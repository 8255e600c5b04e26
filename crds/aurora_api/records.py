"""Records in the store: what is served, what was traced, what was learnt, what was decided.

Invariants:
- every record but :class:`TrainerStatus` is create-once; a later fact is a new record with a higher number;
- data is written before the record that names it, so a record is proof that its data is there;
- token ids live only in shards, never in a record.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from aurora_api.base import Model, Record, Sha256, Timestamp

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


class Arm(StrEnum):
    """One side of a comparison."""

    OFF = "off"
    ACTIVE = "active"
    CANDIDATE = "candidate"
    NGRAM = "ngram"


class Sample(Model):
    """One measured batch: ``requests`` prompts answered at a fixed concurrency."""

    arm: Arm
    concurrency: int = Field(ge=1)
    round: int = Field(ge=0)
    requests: int = Field(ge=1)
    tokens: int = Field(ge=0, description="Answer tokens.")
    seconds: float = Field(gt=0)
    verify_rounds: int | None = Field(
        default=None, description="Verify rounds of the engine; None when speculation is off."
    )
    failures: int = Field(default=0, ge=0)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Equality(Model):
    """Greedy answers of one arm compared with those without speculation, in the end (promise 2)."""

    arm: Arm
    reference: Arm = Field(
        default=Arm.OFF, description="What was compared with: off, or an active draft whose own answers were off's."
    )
    prompts: int = Field(ge=0)
    identical: int = Field(ge=0)
    near_ties: int = Field(ge=0, description="First difference between two tokens whose logits lie within the bound.")
    different: int = Field(ge=0)
    largest_margin: float = Field(default=0.0, ge=0, description="Largest logit gap at a first difference.")


class Environment(Model):
    """Where a measurement was taken; figures of different environments are never compared."""

    hardware: str
    device: Literal["cpu", "cuda"]
    engine: str = Field(description="SGLang's version.")
    torch: str
    dtype: str
    draft_steps: int
    draft_topk: int
    draft_tokens: int
    image: str = ""
    shape: str = Field(
        default="", description="Digest of what else decides speed: the engine's arguments, the pod's resources."
    )
    load_average: float = 0.0

    def same_as(self, other: Environment) -> bool:
        """Whether figures of both may be compared: all is equal but how busy the machine was."""
        return self.model_copy(update={"load_average": other.load_average}) == other


class VerdictKind(StrEnum):
    PASS = "Pass"  # noqa: S105 - a verdict, not a password
    REJECT = "Reject"
    INCONCLUSIVE = "Inconclusive"


class RatioEstimate(Model):
    """A ratio of throughputs with its interval. Paired: arm beside arm in the same rounds."""

    numerator: Arm
    denominator: Arm
    concurrency: int
    rounds: int
    paired: bool = True
    estimate: float
    low: float
    high: float


class Verdict(Model):
    kind: VerdictKind
    reasons: tuple[str, ...]
    ratios: tuple[RatioEstimate, ...]


class MeasuredBaseline(Record):
    """What the target does without a draft of ours, measured once to serve the measurements of later candidates."""

    schema_version: Literal[1] = 1
    lineage: int = Field(ge=1)
    version: int = Field(ge=1, description="The candidate whose measurement left this record.")
    attempt: int = Field(ge=1)
    environment: Environment
    concurrencies: tuple[int, ...]
    per_worker: int = Field(ge=1, description="Prompts per round and unit of concurrency.")
    max_new_tokens: int = Field(ge=1)
    samples: tuple[Sample, ...] = Field(description="Of off, of peers that were asked for, and of drafts beside them.")
    drafts: dict[Arm, Sha256] = Field(default_factory=dict, description="The drafts among the samples.")
    same_answers: tuple[Sha256, ...] = Field(description="Drafts whose greedy answers were found the same as off's.")
    created: Timestamp


class UsedBaseline(Model):
    """A baseline that was measured apart from the candidate, as its verdict used it."""

    key: str = Field(description="Where its record lies.")
    samples: tuple[Sample, ...]
    created: Timestamp


class Evidence(Record):
    """Why a candidate was, or was not, let through; raw samples included so that the verdict can be recomputed."""

    schema_version: Literal[1] = 1
    version: int = Field(ge=1)
    attempt: int = Field(ge=1)
    lineage: int
    candidate_digest: Sha256
    active_version: int
    active_digest: Sha256
    samples: tuple[Sample, ...]
    baseline: UsedBaseline | None = Field(default=None, description="Where the arm off was not among the samples.")
    equality: tuple[Equality, ...]
    accept_length: Annotated[dict[Arm, float], Field(description="Answer tokens per verify round, all samples.")]
    environment: Environment
    prompts_sha256: Sha256 = Field(description="Digest of the held-out prompts' hashes, so that runs can be compared.")
    verdict: Verdict
    started: Timestamp
    finished: Timestamp
