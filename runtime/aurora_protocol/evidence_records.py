"""Store records about measurements: samples, verdicts, evidence and cached baselines."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from aurora_api.base import Model, Timestamp
from aurora_protocol.record import Record, Sha256


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
