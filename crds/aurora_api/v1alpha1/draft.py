"""``spec.draft``: the draft model's architecture, how many tokens a round proposes, and where they come from."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from aurora_api.base import Model
from aurora_api.v1alpha1.cel import rules
from aurora_api.v1alpha1.target import MODEL_PATTERN, MODEL_RULE, REVISION_PATTERN, REVISION_RULE


class Architecture(StrEnum):
    """Draft architectures that the trainer can train and SGLang can serve."""

    EAGLE3 = "EAGLE3"


class Shape(StrEnum):
    """Whether every verify round proposes the same number of tokens, or the engine chooses the number each round."""

    ADAPTIVE = "Adaptive"
    FIXED = "Fixed"


class LookupScope(StrEnum):
    """The text in which an inference pod looks up what may follow a request's last tokens."""

    OFF = "Off"
    REQUEST = "Request"
    SPECULATOR = "Speculator"


_CHAIN = ("draftTokens of a chain (branching 1) is steps + 1: leave draftTokens unset", "a tree needs draftTokens")
_TREE_IS_FIXED = (
    "shape Adaptive proposes chains: with branching above 1 leave shape unset or set it to Fixed, or set branching to 1"
)


class PublishedHead(Model):
    """An EAGLE-3 head that somebody published, as files on the Hugging Face hub or on a volume."""

    model: str = Field(
        min_length=1,
        max_length=512,
        pattern=MODEL_PATTERN,
        json_schema_extra=MODEL_RULE,
        description="Hugging Face id of the head, or a path inside the trainer's container. Its weights must be"
        " safetensors. A gated head needs HF_TOKEN in `training.template`.",
    )
    revision: str | None = Field(
        default=None,
        max_length=128,
        pattern=REVISION_PATTERN,
        json_schema_extra=REVISION_RULE,
        description="Git branch, tag or commit of the head. Unset: its main branch. Set a commit to know which head"
        " the drafts descend from.",
    )


class DraftSpec(Model):
    """The draft model. `architecture`, `vocabSize` and `initial` define the lineage and are immutable."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("self.architecture == oldSelf.architecture", "architecture is immutable: it defines the lineage"),
            ("self.vocabSize == oldSelf.vocabSize", "vocabSize is immutable: it defines the lineage"),
            (
                "has(self.initial) == has(oldSelf.initial) && (!has(self.initial) || self.initial == oldSelf.initial)",
                "initial is immutable: the lineage begins with it",
            ),
            ("self.branching > 1 || !has(self.draftTokens) || self.draftTokens == self.steps + 1", _CHAIN[0]),
            ("self.branching == 1 || has(self.draftTokens)", _CHAIN[1]),
            ("self.branching == 1 || !has(self.shape) || self.shape == 'Fixed'", _TREE_IS_FIXED),
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
        " 8192 on a CPU. With `initial` the head's own vocabulary map is used, and this field has no effect.",
    )
    initial: PublishedHead | None = Field(
        default=None,
        description=(
            "Published EAGLE-3 head that training starts from: of SpecForge, of SGLang (`LlamaForCausalLMEagle3`), or"
            " of vLLM's speculators. Immutable. Unset: training starts from the target's own weights. The head must"
            " fit the target: the same hidden size, vocabulary and embedding, and one layer that SGLang computes as"
            " Aurora trains it. The trainer refuses another one, and `TrainerReady` says why. The head is version 1, a"
            " candidate that the gate measures before pods serve it. Pods start with version 0, an untrained draft of"
            " the same sizes. Training goes on from the head, at a learning rate that begins low."
        ),
    )
    steps: int = Field(
        default=3,
        ge=1,
        le=16,
        description=(
            "Most tokens that the draft proposes one after another in a verify round. With `shape: Adaptive` each"
            " round proposes as many of them as pay, or none; with `shape: Fixed` each round proposes all. Raise it"
            " where answers follow a form (JSON, code) and acceptance is high, and leave `draftTokens` unset. Training"
            " then unrolls as deep. Pods restart one by one when it changes."
        ),
    )
    shape: Shape | None = Field(
        default=None,
        description=(
            "How a verify round gets its size. `Adaptive`: the engine measures what a round costs and what it gains."
            " It proposes as many tokens as pay at the present load, of the draft or of `lookup`, or none."
            " `Fixed`: each round proposes `steps` tokens of the draft, or the tree, at any load, even where that is"
            " slower than no speculation; `lookup` has no effect. Use it only to compare. Unset: Adaptive for a chain,"
            " Fixed for a tree (`branching` above 1). Pods restart one by one when it changes."
        ),
    )
    lookup: LookupScope = Field(
        default=LookupScope.REQUEST,
        description=(
            "Text in which a pod looks up tokens to propose beside the draft's. `Request`: the request's own prompt and"
            " answer so far; it reveals nothing to other clients. `Speculator`: also recent prompts and answers of"
            " other requests to this speculator. That is fastest where requests resemble each other, but a client who"
            " measures time can find out whether a text that the client guesses was in another client's request: choose"
            " it where all clients may know that. `Off`: no lookup. Answers are the same with each value. Pods restart"
            " one by one when it changes."
        ),
    )
    branching: int = Field(
        default=1,
        ge=1,
        le=16,
        description=(
            "Alternatives per proposed token, as SGLang's --speculative-eagle-topk. 1 proposes a chain. More"
            " propose a tree of a fixed shape, which accepts more and verifies more: set `draftTokens` too. Pods"
            " restart one by one when it changes."
        ),
    )
    draft_tokens: int | None = Field(
        default=None,
        ge=2,
        le=64,
        description=(
            "Most tokens that the target verifies in a round, counting the one that the round starts from. Leave it"
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
        if self.branching > 1 and self.shape is Shape.ADAPTIVE:
            raise ValueError(_TREE_IS_FIXED)
        return self

    @property
    def adaptive(self) -> bool:
        """Whether the engine chooses the size of each verify round. A tree has a fixed shape."""
        return self.branching == 1 and self.shape is not Shape.FIXED

    def for_training(self) -> Self:
        """The draft without what only serving uses, so that a change of it restarts no trainer."""
        return self.model_copy(update={"shape": None, "lookup": LookupScope.REQUEST})

    @property
    def tokens_per_round(self) -> int:
        """Most tokens that the target verifies in a round, the root included. With a fixed shape, in each round."""
        return self.steps + 1 if self.draft_tokens is None else self.draft_tokens
