"""``spec.draft``: the draft model's architecture and how many tokens it proposes."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from aurora_api.base import Model
from aurora_api.v1alpha1.cel import rules


class Architecture(StrEnum):
    """Draft architectures that the trainer can train and SGLang can serve."""

    EAGLE3 = "EAGLE3"


_CHAIN = ("draftTokens of a chain (branching 1) is steps + 1: leave draftTokens unset", "a tree needs draftTokens")


class DraftSpec(Model):
    """The draft model. `architecture` and `vocabSize` define the lineage and are immutable."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("self.architecture == oldSelf.architecture", "architecture is immutable: it defines the lineage"),
            ("self.vocabSize == oldSelf.vocabSize", "vocabSize is immutable: it defines the lineage"),
            ("self.branching > 1 || !has(self.draftTokens) || self.draftTokens == self.steps + 1", _CHAIN[0]),
            ("self.branching == 1 || has(self.draftTokens)", _CHAIN[1]),
            (
                "!has(self.draftTokens) || self.draftTokens <= 1 + self.steps * self.branching * self.branching",
                "draftTokens exceeds the nodes of the tree: 1 + steps * branching * branching",
            ),
        )
    }

    architecture: Architecture = Field(
        default=Architecture.EAGLE3, description="Architecture of the draft. Immutable. EAGLE3 is the only one today."
    )
    vocab_size: int = Field(
        default=16384,
        ge=256,
        le=262144,
        description="Number of target tokens that the draft can propose (the size of its vocabulary map), capped at the"
        " target's vocabulary. Immutable. A smaller map makes cheaper rounds and covers fewer answers: choose 4096 or"
        " 8192 on a CPU.",
    )
    steps: int = Field(
        default=3,
        ge=1,
        le=16,
        description=(
            "Tokens that the draft proposes one after another in a verify round. Raise it where answers follow a"
            " form (JSON, code) and acceptance is high, and leave `draftTokens` unset. Training then unrolls as"
            " deep. Pods restart one by one when it changes."
        ),
    )
    branching: int = Field(
        default=1,
        ge=1,
        le=16,
        description=(
            "Alternatives per proposed token, as SGLang's --speculative-eagle-topk. 1 proposes a chain. More"
            " propose a tree, which accepts more and verifies more: set `draftTokens` too. Pods restart one by one"
            " when it changes."
        ),
    )
    draft_tokens: int | None = Field(
        default=None,
        ge=2,
        le=64,
        description=(
            "Tokens that the target verifies in a round, counting the one that the round starts from. Leave it"
            " unset for a chain, where it is steps + 1: raise `steps` to propose more. Required when `branching`"
            " is above 1. Pods restart one by one when it changes."
        ),
    )

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        if self.branching == 1 and self.draft_tokens not in (None, self.steps + 1):
            raise ValueError(_CHAIN[0])
        if self.branching > 1 and self.draft_tokens is None:
            raise ValueError(_CHAIN[1])
        return self

    @property
    def tokens_per_round(self) -> int:
        """Tokens that the target verifies in a round, the root included."""
        return self.steps + 1 if self.draft_tokens is None else self.draft_tokens
