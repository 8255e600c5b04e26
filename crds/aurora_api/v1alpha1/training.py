"""``spec.training``: how the trainer learns, when it offers a candidate, and how many traces it keeps."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from aurora_api.base import MAX_QUANTITY, Model, Quantity, Ratio, capped, quantity_bytes
from aurora_api.v1alpha1.cel import at_most, rules
from aurora_api.v1alpha1.template import PodTemplate, template_field

MAX_UNROLL_STEPS: Final = 8
LEARNING_RATE_PATTERN: Final = r"^(0|[1-9][0-9]{0,3})(\.[0-9]{1,8})?$"
"""Finer than a ratio: wide targets need a rate below 0.0001."""
MAX_PUBLISH_TOKENS: Final = 1_000_000_000
MAX_PUBLISH_SECONDS: Final = 365 * 86400
MAX_TRACE_AGE_SECONDS: Final = 10 * 365 * 86400
"""Stands for requests without a tag, so no tag has this hash."""


class TrainingSpec(Model):
    """The trainer: how it learns, when it offers a candidate, and how many traces it keeps."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "!has(self.learningRate) || (double(self.learningRate) > 0.0 && double(self.learningRate) <= 0.1)",
                "learningRate is above 0 and at most 0.1",
            ),
            (
                "quantity(string(self.traceStorageLimit)).compareTo(quantity('2Gi')) >= 0",
                "traceStorageLimit is at least 2Gi",
            ),
            (
                at_most("traceStorageLimit", MAX_QUANTITY),
                "traceStorageLimit without a unit has at most 18 digits",
            ),
        )
    }

    suspended: bool = Field(
        default=False,
        description=(
            "Stop training and offer no new candidate. Pods go on serving the active draft. The trainer's pod stays,"
            " with its GPU, only to create the initial draft, and to delete old traces while pods may write new ones:"
            " it stops"
            ' when `serving.replicas` is 0 or `capture.sampleRatio` is "0". A candidate that was offered before is'
            " still measured and rolled out while `serving.replicas` is above 0: set `rollout.paused` to prevent the"
            " roll."
        ),
    )
    learning_rate: Annotated[str, Field(pattern=LEARNING_RATE_PATTERN)] | None = Field(
        default=None,
        description=(
            "Step size of the optimizer (AdamW). It stays constant, because live traffic has no end. Unset: 0.001 for"
            " targets with a hidden size of up to 576, and less for wider ones in inverse proportion: 0.00014 at 4096."
            " Lower it if held-out acceptance falls or jumps."
        ),
    )
    replay: int = Field(
        default=3,
        ge=0,
        le=8,
        description=(
            "Batches of older examples trained beside each new batch. More replay needs less traffic for the same"
            " draft, and proportionally more computation. Lower it for a trainer that falls behind. 0 turns replay"
            " off."
        ),
    )
    passes: int = Field(
        default=16,
        ge=1,
        le=64,
        description=(
            "Largest average number of times that a traced position is trained, replay included. The trainer trains it"
            " 1 + `replay` times as traces arrive, and the rest while it is idle. Lower it to let the trainer's device"
            " rest sooner. It has no effect when `replay` is 0."
        ),
    )
    unroll_steps: int | None = Field(
        default=None,
        ge=1,
        le=MAX_UNROLL_STEPS,
        description="Draft steps that training unrolls (the training-time test of EAGLE-3). Unset: as many as"
        f" `draft.steps`, at most {MAX_UNROLL_STEPS}, which is best: a draft proposes worse tokens beyond the"
        " depth that it was trained for.",
    )
    publish_tokens: Annotated[int, capped(MAX_PUBLISH_TOKENS)] = Field(
        default=20000,
        ge=256,
        le=MAX_PUBLISH_TOKENS,
        description=(
            "Number of new traced positions after which the trainer compares its draft with the last version that"
            " it offered. It offers the draft as a candidate if it is better by `minGain`. Lower it to follow the"
            " traffic faster, with more measurements."
        ),
    )
    publish_seconds: Annotated[int, capped(MAX_PUBLISH_SECONDS)] = Field(
        default=900,
        ge=10,
        le=MAX_PUBLISH_SECONDS,
        description=(
            "Seconds since the last comparison after which the trainer compares its draft even if fewer than"
            " `publishTokens` positions came. Raise it for services with little traffic."
        ),
    )
    min_gain: Ratio = Field(
        default="0.02",
        description=(
            "Tokens per verify round by which a draft must beat the last offered version on held-out requests,"
            ' before the trainer offers it as a candidate: with "0.02", a draft must reach 2.52 where the last offered'
            " version has 2.50. Raise it for fewer, larger candidates."
        ),
    )
    trace_storage_limit: Quantity = Field(
        default="64Gi",
        description=(
            "Bytes of traces that the store keeps for this speculator, at least 2Gi, such as 200G or 200Gi. The"
            " number of shards is limited too: one per MiB of the limit, but never fewer than 4096. Beyond"
            " either limit the trainer deletes the oldest shards, trained or not. Raise it to replay more of the"
            " past, lower it where the bucket fills."
        ),
    )
    trace_max_age_seconds: (
        Annotated[int, Field(ge=3600, le=MAX_TRACE_AGE_SECONDS), capped(MAX_TRACE_AGE_SECONDS)] | None
    ) = Field(
        default=None,
        description=(
            "Age in seconds beyond which the trainer deletes traces, trained or not, and drops them from replay:"
            " 2592000 for 30 days. It deletes them little more than an hour after that."
            " Drafts that learned from them stay. Unset: traces have no limit of age. It has no effect while no trainer"
            ' runs: training is suspended, and `serving.replicas` is 0 or `capture.sampleRatio` is "0".'
        ),
    )
    template: PodTemplate = template_field("the trainer's pod", ["trainer"])

    @property
    def trace_storage_bytes(self) -> int:
        """:attr:`trace_storage_limit` in bytes."""
        return quantity_bytes(self.trace_storage_limit)
