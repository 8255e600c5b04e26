"""``spec.rollout``: how a validated draft reaches the pods, and when live traffic takes it back."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.annotations import MAX_VERSION


class AnalysisSpec(Model):
    """How live traffic judges a new draft: against pods on the active draft, or traffic before the first swap.

    A judgement compares answer tokens per verify round. A loss of more than 10 % counts, and only beyond chance.
    """

    min_requests: int = Field(
        default=50,
        ge=0,
        le=1000000,
        description="Ended requests that each side of a judgement needs. Lower it for services with little traffic:"
        " judgements come sooner and are less sure. At least 8 are awaited. 0 does not judge live traffic at all.",
    )
    failure_limit: int = Field(
        default=1,
        ge=0,
        le=100,
        description="How many failed judgements, and separately how many engine crashes, to tolerate before rolling"
        " back. Raise it where traffic is uneven.",
    )
    watch_seconds: int = Field(
        default=300,
        ge=0,
        le=86400,
        description="Seconds for which a promoted version is still judged, and rolled back if it fails. 0 stops judging"
        " at the promotion. Raise it where traffic changes over the day. Less than a minute shortens judgements too.",
    )


class RolloutSpec(Model):
    """How a validated draft reaches the pods: a canary first, then pod by pod."""

    paused: bool = Field(
        default=False,
        description="Start no roll, and stop a roll in progress before its next pod. Training and measurements go on."
        " A version is still rolled back when live traffic rejects it, or by the annotation `aurora.dev/abort`.",
    )
    pin: int | None = Field(
        default=None,
        ge=0,
        le=MAX_VERSION,
        description="Serve this version until `pin` is unset: 0, the initial draft, or a version that passed its"
        " measurement (see `status.history`). The pods swap to it without a canary, also while rolls are paused. Newer"
        " candidates wait.",
    )
    canary: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Number of pods that take a new version first and are judged by live traffic. Raise it to reach"
        " `analysis.minRequests` sooner. Where no more pods than this serve, all are compared with the traffic before.",
    )
    analysis: AnalysisSpec = Field(default_factory=AnalysisSpec)
