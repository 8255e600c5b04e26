"""``spec.rollout``: how a validated draft reaches the pods, and when live traffic takes it back."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from aurora_api.base import Model, Ratio, capped
from aurora_api.v1alpha1.annotations import MAX_VERSION
from aurora_api.v1alpha1.cel import rules


class AnalysisSpec(Model):
    """How live traffic judges a new draft: against pods on the active draft, or traffic before the first swap."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(("double(self.maxAcceptLoss) < 1.0", "maxAcceptLoss is a share below 1"))
    }

    settle_seconds: int = Field(
        default=20,
        ge=0,
        le=3600,
        description="Seconds after the first swap of a roll, and again after the promotion, in which live traffic is"
        " not judged, so that requests which the previous draft began can end. Set it above the duration of your"
        " longest usual requests: a request that ends later counts for the new draft.",
    )
    interval_seconds: int = Field(
        default=10,
        ge=1,
        le=3600,
        description=(
            "Minimum seconds between two judgements. An interval is extended until it holds `minRequests`. Raise"
            " it for steadier judgements."
        ),
    )
    min_requests: int = Field(
        default=50,
        ge=1,
        le=1000000,
        description=(
            "Ended requests that each side of a judgement needs in an interval: the pods on the new draft, and"
            " the pods or the earlier traffic that they are compared with. Lower it for services with little traffic:"
            " judgements come sooner and notice less."
        ),
    )
    max_accept_loss: Ratio = Field(
        default="0.1",
        description=(
            'Share of the acceptance length that pods on the new draft may lose against the others: "0.1" is 10'
            " %. Only tokens that the draft proposed count, not those of lookup. Where the former draft hardly"
            " proposed, nothing can be lost. A loss counts only beyond chance. Lower it to notice small losses; they"
            " take more requests."
        ),
    )
    max_latency_increase: Ratio = Field(
        default="0.5",
        description=(
            'Share by which the time between answer tokens may exceed that of pods on the active draft: "0.5" is'
            " 50 %. An interval that exceeds it beyond chance is neither a good nor a failed judgement. From the third"
            " such interval in a row on, each is a failed judgement. Lower it where latency matters and machines are"
            " alike."
        ),
    )
    max_abort_increase: Ratio = Field(
        default="0.02",
        description=(
            'How much the share of requests that clients abort may rise: "0.02" is two percentage points. Raise'
            " it where clients often abort."
        ),
    )
    failure_limit: int = Field(
        default=1,
        ge=0,
        le=100,
        description=(
            "Roll back after more failed judgements than this, or after more engine crashes than this. The two are"
            " counted separately. 0 rolls back at the first of either. Raise it where traffic is uneven."
        ),
    )
    consecutive_success_limit: int = Field(
        default=2,
        ge=0,
        le=100,
        description=(
            "Number of good judgements in a row that the canary needs before the other pods follow. 0 does not"
            " wait for any. Raise it to watch a canary for longer."
        ),
    )
    watch_seconds: int = Field(
        default=300,
        ge=0,
        le=86400,
        description=(
            "Seconds for which a promoted version is still judged, and rolled back if it fails. 0 stops judging"
            " at the promotion. Raise it where traffic changes over the day."
        ),
    )


class RolloutSpec(Model):
    """How a validated draft reaches the pods: a canary first, then pod by pod."""

    paused: bool = Field(
        default=False,
        description=(
            "Start no roll, and stop a roll in progress before its next pod: pods that swapped already keep the new"
            " draft. Training goes on. Measurements go on between rolls. They wait while a roll is stopped."
            " A version is still rolled back when live traffic rejects it, or when somebody sets the annotation"
            " `aurora.dev/abort`. `pin` works while rolls are paused."
        ),
    )
    pin: Annotated[int, Field(ge=0, le=MAX_VERSION), capped(MAX_VERSION)] | None = Field(
        default=None,
        description=(
            "Serve this version until `pin` is unset. The pods swap to it without a canary, live traffic does not"
            " judge it, newer candidates wait, and training goes on. Allowed are 0, the initial draft, and every"
            " version that passed its measurement; `status.history` names recent ones. For any other version the"
            " condition Stalled says PinRefused and nothing is rolled out. Once `pin` is unset, newer candidates roll"
            " out again."
        ),
    )
    canary: int = Field(
        default=1,
        ge=1,
        le=100,
        description=(
            "Number of pods that take a new version first and are judged by live traffic. Raise it to reach"
            " `analysis.minRequests` sooner. Where no more pods than this serve, for example after an autoscaler"
            " scaled down, all of them are the canary, and are compared with the traffic before their swap."
        ),
    )
    analysis: AnalysisSpec = Field(default_factory=AnalysisSpec)
    max_swapping: int = Field(
        default=1,
        ge=1,
        le=100,
        description=(
            "Number of pods that swap at the same time after the canary. A swap pauses a pod for a fraction of a"
            " second: raise it for many replicas."
        ),
    )
    max_not_ready: int = Field(
        default=1,
        ge=0,
        le=1000,
        description=(
            "Hold a roll while more pods than this are not ready, whatever the reason. A replica that is lent to"
            " a measurement does not count, nor does a pod that waits for a node. A pod that is missing with the new"
            " draft keeps its deadline during a hold (`progressDeadlineSeconds`). Raise it for many replicas."
        ),
    )
    progress_deadline_seconds: int = Field(
        default=600,
        ge=10,
        le=86400,
        description=(
            "Roll back when no pod changed its version for this many seconds. The clock does not run while a roll"
            " is paused or held, while the canary waits for traffic, and while a pod that had the new draft is missing."
            " Such a pod may be missing for this many seconds, or for as long as its engine may take to start (its"
            " startup probe, 3900 s by default) if that is longer and its engine does not end again and again."
            " Then the draft is rejected. Raise it where pods download drafts slowly."
        ),
    )
