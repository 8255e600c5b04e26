"""``spec.capture``: traces of live requests."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model, Ratio
from aurora_api.v1alpha1.template import rules


class CaptureSpec(Model):
    """Traces of live requests. They hold token ids: user data. Lower ``sampleRatio``, or set it to 0, to keep less."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(("double(self.sampleRatio) <= 1.0", "sampleRatio is a share: at most 1"))
    }

    sample_ratio: Ratio = Field(default="1", description="Share of requests that are traced.")
    top_k: int = Field(
        default=32, ge=1, le=256, description="Target probabilities kept per node; the rest as one mass."
    )
    shard_seconds: int = Field(default=20, ge=1, le=3600, description="A shard is closed after this time…")
    shard_tokens: int = Field(default=16384, ge=64, le=1048576, description="…or this many positions.")
