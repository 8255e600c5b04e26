"""``spec.capture``: traces of live requests."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from aurora_api.base import Model, Ratio
from aurora_api.v1alpha1.cel import rules
from aurora_api.v1alpha1.limits import CaptureLimits


class StateType(StrEnum):
    """How a trace stores the target's hidden states."""

    BFLOAT16 = "BFloat16"
    FLOAT8 = "Float8"


class CaptureSpec(Model):
    """Traces of live requests. A trace holds token ids, which are user data: lower `sampleRatio` to store less.

    A request can refuse to be traced, or name a tag whose traces can be erased (docs/how-to/erasing-data.md).
    """

    model_config = Model.model_config | {
        "json_schema_extra": rules(("double(self.sampleRatio) <= 1.0", "sampleRatio is a share: at most 1"))
    }

    sample_ratio: Ratio = Field(
        default="1",
        description=(
            'Share of requests that are traced, from "0" (none) to "1" (all). Set "0.05" where traffic is high or'
            " traces cost too much: some thousand answer tokens are enough for a draft. `topTokens` and"
            " `training.traceStorageLimit` also bound the cost."
        ),
    )
    top_tokens: int = Field(
        default=32,
        ge=1,
        le=256,
        description=(
            "How many of the target's most likely tokens a trace keeps per position, with their probabilities."
            " More tokens teach the draft more of the target's distribution, and make larger traces."
        ),
    )
    shard_seconds: int = Field(
        default=20,
        ge=1,
        le=3600,
        description="A pod closes and uploads a shard of traces after this many seconds, or when `shardTokens` is"
        " reached. Lower it to train on newer traffic, at the price of more objects.",
    )
    shard_tokens: int = Field(
        default=16384,
        ge=64,
        le=1048576,
        description=(
            "A pod closes and uploads a shard of traces at this many token positions, or after `shardSeconds`."
            " Lower it to upload smaller files."
        ),
    )
    state_type: StateType = Field(
        default=StateType.FLOAT8,
        description=(
            "How a trace stores the target's hidden states, which are most of its bytes. `Float8` takes half of the"
            " bytes of `BFloat16`, with a scale for each position. Drafts learned as well from it in our measurements"
            " (docs/results/costs.md). Set `BFloat16` to compare the two."
        ),
    )
    limits: CaptureLimits = Field(default_factory=CaptureLimits)
