"""Store records about measurements: samples, verdicts and evidence.

Why: a promotion must be explainable later. The records keep the raw samples, so that an auditor can compute the verdict
again with :func:`aurora_protocol.gate.judge`.

Invariants: :class:`Evidence` is create-once. A new measurement writes a new record with a higher attempt number. No
record holds token ids.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from aurora_api.base import Model, Timestamp
from aurora_api.v1alpha1.draft import LookupScope, Shape
from aurora_protocol.agent_api import Machine
from aurora_protocol.record import Sha256, StoredRecord


class Arm(StrEnum):
    """One side of a comparison, as in a trial with several arms: the way in which an engine answers the prompts."""

    OFF = "off"
    """Without speculation."""
    ACTIVE = "active"
    """With the active draft."""
    CANDIDATE = "candidate"
    """With the candidate draft."""
    NGRAM = "ngram"
    """With SGLang's NGRAM speculation, which needs no draft."""


class Sample(Model):
    """One measured batch: ``requests`` prompts answered by one arm at a fixed concurrency."""

    arm: Arm = Field(description="The arm that answered the batch.")
    concurrency: int = Field(ge=1, description="Requests in flight at any time.")
    round: int = Field(ge=0, description="Number of the measurement round, from 0.")
    requests: int = Field(ge=1, description="Prompts in the batch.")
    tokens: int = Field(ge=0, le=10**12, description="Answer tokens of the batch.")
    seconds: float = Field(ge=1e-6, le=1e7, allow_inf_nan=False, description="Wall time of the batch.")
    verify_rounds: int | None = Field(
        default=None, description="Verify rounds of the engine during the batch. None without speculation."
    )
    failures: int = Field(default=0, ge=0, description="Requests that ended without a valid answer.")


class AnswerEquality(Model):
    """How one arm's greedy answers compare with those without speculation (promise 2)."""

    arm: Arm = Field(description="The arm whose answers were compared with those of off.")
    prompts: int = Field(ge=0, description="Prompts whose answers were compared.")
    identical: int = Field(ge=0, description="Prompts with identical answers.")
    near_ties: int = Field(
        ge=0,
        description="Prompts whose answers first differ between two tokens with logits closer than the near-tie bound.",
    )
    different: int = Field(ge=0, description="Prompts whose answers differ beyond a near tie.")


class Environment(Machine):
    """The machine, the engine and the settings of a measurement. A figure without them says nothing."""

    dtype: str = Field(description="Number format of the target.")
    draft_steps: int = Field(description="Draft steps per verify round.")
    draft_tokens: int = Field(description="Tokens verified per round.")
    draft_shape: Shape = Field(
        default=Shape.FIXED,
        description="Whether the engine chose the size of each verify round. draft_steps and draft_tokens are then the"
        " largest sizes of the draft's proposals.",
    )
    lookup: LookupScope = Field(
        default=LookupScope.OFF, description="The text in which the engine looked up tokens to propose."
    )
    image: str = Field(default="", description="Container image of the engine.")
    load_average: float = Field(default=0.0, description="The machine's load average over one minute.")


class VerdictKind(StrEnum):
    """The outcome of the gate. Only ``PASS`` promotes."""

    PASS = "Pass"  # noqa: S105 - a verdict, not a password
    REJECT = "Reject"
    INCONCLUSIVE = "Inconclusive"


class MeasurementEnd(StrEnum):
    """Why a measurement ended."""

    DECIDED = "Decided"
    """Its verdict is final."""
    BUDGET_USED = "BudgetUsed"
    """Its rounds or its time are used up."""
    HOPELESS = "Hopeless"
    """With the rounds that were left it would hardly have passed."""
    GAVE_WAY = "GaveWay"
    """A newer version waited, and the measurement was far from a decision or had had its share of rounds."""


class RatioEstimate(Model):
    """The throughput of one arm divided by that of another, with a confidence interval."""

    numerator: Arm = Field(description="The arm whose throughput is divided.")
    denominator: Arm = Field(description="The arm whose throughput divides.")
    concurrency: int = Field(description="Requests in flight at any time.")
    rounds: int = Field(description="Rounds behind the estimate. Each has both arms.")
    estimate: float = Field(description="Geometric mean of the ratio.")
    low: float = Field(description="Lower bound of the interval.")
    high: float = Field(description="Upper bound of the interval.")


class Verdict(Model):
    """The gate's conclusion from a measurement."""

    kind: VerdictKind = Field(description="The outcome.")
    reasons: tuple[str, ...] = Field(description="One readable reason for each bar of the gate.")
    ratios: tuple[RatioEstimate, ...] = Field(description="All estimated ratios, those that decide nothing included.")


class Evidence(StoredRecord):
    """Why a candidate was promoted or not. Holds the raw samples, so that the verdict can be computed again."""

    version: int = Field(ge=1, description="The candidate.")
    attempt: int = Field(ge=1, description="The attempt at measuring the candidate, from 1.")
    lineage: int = Field(description="Number of the candidate's lineage.")
    candidate_digest: Sha256 = Field(description="Digest of the candidate's weights.")
    active_version: int = Field(description="The version that was active during the measurement.")
    active_digest: Sha256 = Field(description="Digest of the active version's weights.")
    samples: tuple[Sample, ...] = Field(description="All measured batches.")
    equality: tuple[AnswerEquality, ...] = Field(description="Comparisons of greedy answers, of the candidate's.")
    acceptance_length: dict[Arm, float] = Field(description="Answer tokens per verify round, over all samples.")
    environment: Environment = Field(description="Where the candidate was measured.")
    verdict: Verdict = Field(description="The gate's conclusion.")
    end: MeasurementEnd | None = Field(
        default=None, description="Why the measurement ended. None in evidence that does not count."
    )
    started: Timestamp = Field(description="When the measurement began.")
    finished: Timestamp = Field(description="When the measurement ended.")
