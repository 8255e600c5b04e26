"""``spec.draft``: the draft model's architecture and shape."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.template import rules


class Architecture(StrEnum):
    EAGLE3 = "EAGLE3"


class DraftSpec(Model):
    """The draft model. ``architecture`` and ``vocabSize`` define the lineage; the rest is how it is used."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("self.architecture == oldSelf.architecture", "architecture is immutable: it defines the lineage"),
            ("self.vocabSize == oldSelf.vocabSize", "vocabSize is immutable: it defines the lineage"),
            (
                "self.topK == 1 ? self.draftTokens == self.steps + 1 : true",
                "a chain (topK 1) has draftTokens = steps + 1",
            ),
            (
                "self.draftTokens <= 1 + self.steps * self.topK * self.topK",
                "draftTokens exceeds what the tree can hold",
            ),
        )
    }

    architecture: Architecture = Architecture.EAGLE3
    vocab_size: int = Field(
        default=16384,
        ge=256,
        le=262144,
        description="Entries of the draft's vocabulary map, capped at the target's. On a CPU 4096 or 8192 make"
        " cheaper rounds (docs/results/vocabulary-map.md).",
    )
    steps: int = Field(default=3, ge=1, le=16, description="Draft steps per verify round.")
    top_k: int = Field(default=1, ge=1, le=16, description="Branches per step; 1 is a chain.")
    draft_tokens: int = Field(default=4, ge=2, le=64, description="Nodes verified per round, the root included.")
    pin: int | None = Field(
        default=None,
        ge=0,
        description="Serve this version, at once and whatever comes after it, until unset. It must once have passed.",
    )
