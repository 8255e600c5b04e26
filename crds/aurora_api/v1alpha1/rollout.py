"""``spec.rollout``: how a validated draft reaches the pods."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model, Ratio
from aurora_api.v1alpha1.template import rules


class AnalysisSpec(Model):
    """Live traffic's word on a swapped draft: what swapped pods do, against their peers, or what all did before."""

    settle_seconds: int = Field(
        default=20,
        ge=0,
        le=3600,
        description="Wait after a swap, so that requests end that the former draft began: set it above how long your"
        " longest usual requests take, as those that outlast it count for the new draft.",
    )
    interval_seconds: int = Field(
        default=10, ge=1, le=3600, description="One judgement per interval, which grows until there is enough traffic."
    )
    min_requests: int = Field(
        default=50, ge=1, le=1000000, description="Requests that a judgement needs on either side."
    )
    max_accept_loss: Ratio = Field(default="0.1", description="Share of the acceptance length that may be lost.")
    max_latency_increase: Ratio = Field(
        default="0.5",
        description="Share by which the time between answer tokens may exceed the peers'; bad is only what exceeds it,"
        " beyond chance, in three windows in a row.",
    )
    max_abort_increase: Ratio = Field(
        default="0.02", description="Share of requests that clients may give up beyond the other side's."
    )
    failure_limit: int = Field(
        default=1, ge=0, le=100, description="Bad judgements, and engines that end, that are tolerated each."
    )
    consecutive_success_limit: int = Field(
        default=2, ge=0, le=100, description="Good judgements in a row that let a canary pass; 0: at once."
    )
    watch_seconds: int = Field(
        default=300, ge=0, le=86400, description="How long a promoted version is judged on; then it stays."
    )

    model_config = Model.model_config | {
        "json_schema_extra": rules(("double(self.maxAcceptLoss) < 1.0", "maxAcceptLoss is a share below 1"))
    }


class RolloutSpec(Model):
    """How an earned draft reaches the pods."""

    paused: bool = Field(
        default=False,
        description="Start no swap; a roll in progress stops before its next pod. What was refused is taken back.",
    )
    canary: int = Field(default=1, ge=1, le=100, description="Pods swapped and judged first.")
    analysis: AnalysisSpec = Field(default_factory=AnalysisSpec)
    max_swapping: int = Field(default=1, ge=1, le=100, description="Pods swapped at the same time after the canary.")
    max_unavailable: int = Field(
        default=1, ge=0, le=1000, description="Swap no further pod while more pods than these are not ready."
    )
    progress_deadline_seconds: int = Field(
        default=600, ge=10, le=86400, description="Without progress for this long, roll back."
    )
