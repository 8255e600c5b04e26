"""``spec.training``: how the trainer learns, when it offers a candidate, and how many traces it keeps."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from aurora_api.base import MAX_QUANTITY, Model, Quantity, quantity_bytes
from aurora_api.v1alpha1.cel import at_most, rules
from aurora_api.v1alpha1.template import PodTemplate, template_field

MAX_PUBLISH_TOKENS: Final = 1_000_000_000
MAX_TRACE_AGE_SECONDS: Final = 10 * 365 * 86400


class TrainingSpec(Model):
    """The trainer: how it learns, when it offers a candidate, and how many traces it keeps."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "quantity(string(self.traceStorageLimit)).compareTo(quantity('2Gi')) >= 0 &&"
                f" {at_most('traceStorageLimit', MAX_QUANTITY)}",
                "traceStorageLimit is at least 2Gi, and has at most 18 digits",
            ),
        )
    }

    suspended: bool = Field(
        default=False,
        description="Stop training, and tracing for it. The trainer's pod ends, so its device is free. Pods go on"
        " serving the active draft, and a candidate that was offered before is still measured and rolled out, if enough"
        " requests are held out. No trace is deleted meanwhile.",
    )
    passes: int = Field(
        default=16,
        ge=1,
        le=64,
        description="Average number of times that a traced position is trained. Up to 4 passes are made as traces"
        " arrive, the others while the trainer waits for traces. Lower it for a trainer that falls behind, or to let"
        " its device rest sooner.",
    )
    publish_tokens: int = Field(
        default=20000,
        ge=256,
        le=MAX_PUBLISH_TOKENS,
        description="New traced positions after which the trainer compares its draft with the last one that it offered,"
        " and offers it as a candidate if it is better. With little traffic, a tenth of them is enough after 15"
        " minutes. Lower it to follow the traffic faster, with more measurements.",
    )
    trace_storage_limit: Quantity = Field(
        default="64Gi",
        description="Bytes of traces that the store keeps for this speculator, at least 2Gi, in at most one shard per"
        " MiB (at least 4096). The trainer deletes the oldest shards beyond, trained or not. Raise it to train on"
        " more of the past, lower it where the bucket fills.",
    )
    trace_max_age_seconds: int | None = Field(
        default=None,
        ge=3600,
        le=MAX_TRACE_AGE_SECONDS,
        description="Seconds after which the trainer deletes a trace, trained or not, within an hour and a half:"
        " 2592000 for 30 days. Drafts that learned from it stay. Unset: no limit. It has no effect while training is"
        " suspended.",
    )
    draft_history_limit: int = Field(
        default=10,
        ge=2,
        le=1000,
        description="Drafts whose weights the store keeps: the active one, the previous one, and the newest that passed"
        " their measurement. The trainer deletes the others a day after they were stored, and they can no longer be"
        " pinned. Version 0 stays too, and so do drafts that may still be measured. Raise it to keep older drafts.",
    )
    template: PodTemplate = template_field("the trainer's pod", ["trainer"])

    @property
    def trace_storage_bytes(self) -> int:
        """:attr:`trace_storage_limit` in bytes."""
        return quantity_bytes(self.trace_storage_limit)
