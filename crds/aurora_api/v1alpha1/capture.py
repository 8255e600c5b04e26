"""``spec.capture``: traces of live requests."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model, Ratio
from aurora_api.v1alpha1.cel import rules


class CaptureSpec(Model):
    """Traces of live requests. A trace holds token ids, which are user data.

    A request can refuse to be traced, or name a tag whose traces can be erased (docs/how-to/erasing-data.md).
    """

    model_config = Model.model_config | {
        "json_schema_extra": rules(("double(self.sampleRatio) <= 1.0", "sampleRatio is a share: at most 1"))
    }

    sample_ratio: Ratio = Field(
        default="1",
        description='Share of requests that are traced, from "0" (none) to "1" (all). Set "0.05" where traffic is high'
        " or traces cost too much: some thousand answer tokens are enough for a draft.",
    )
