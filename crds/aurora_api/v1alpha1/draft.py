"""``spec.draft``: the draft model, how many tokens a round proposes, and where they come from."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.cel import rules
from aurora_api.v1alpha1.target import MODEL_PATTERN, MODEL_RULE, REVISION_PATTERN, REVISION_RULE

ARCHITECTURE: Final = "EAGLE3"
"""SGLang's name of the only architecture that the trainer trains."""


class Shape(StrEnum):
    """Whether every verify round proposes the same number of tokens, or the engine chooses the number each round."""

    ADAPTIVE = "Adaptive"
    FIXED = "Fixed"


class LookupScope(StrEnum):
    """The text in which an inference pod looks up what may follow a request's last tokens."""

    OFF = "Off"
    REQUEST = "Request"
    SPECULATOR = "Speculator"


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
    """The draft model, an EAGLE-3 head. `vocabSize` and `initial` define the lineage and are immutable."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("self.vocabSize == oldSelf.vocabSize", "vocabSize is immutable: it defines the lineage"),
            (
                "has(self.initial) == has(oldSelf.initial) && (!has(self.initial) || self.initial == oldSelf.initial)",
                "initial is immutable: the lineage begins with it",
            ),
        )
    }

    vocab_size: int = Field(
        default=16384,
        ge=256,
        le=262144,
        description="Number of target tokens that the draft can propose. Immutable. Fewer tokens make cheaper rounds"
        " and cover fewer answers: choose 4096 or 8192 on a CPU. It has no effect with `initial`, whose vocabulary map"
        " is used.",
    )
    initial: PublishedHead | None = Field(
        default=None,
        description="Published EAGLE-3 head that training starts from: of SpecForge, SGLang (LlamaForCausalLMEagle3) or"
        " vLLM's speculators. Immutable. It must fit the target, or `TrainerReady` says why not. The head is version 1,"
        " a candidate that the gate measures first. Unset: training starts from the target's own weights.",
    )
    steps: int = Field(
        default=3,
        ge=1,
        le=16,
        description="Most tokens that the draft proposes one after another in a verify round. Raise it where answers"
        " follow a form (JSON, code) and acceptance is high. Pods restart one by one when it changes.",
    )
    shape: Shape = Field(
        default=Shape.ADAPTIVE,
        description="`Adaptive`: the engine proposes as many tokens as pay at the present load, of the draft or of"
        " `lookup`, or none. `Fixed`: each round proposes `steps` tokens of the draft, even where that is slower than"
        " no speculation; use it only to compare. Pods restart one by one when it changes.",
    )
    lookup: LookupScope = Field(
        default=LookupScope.SPECULATOR,
        description="Text in which a pod looks up tokens to propose beside the draft's. `Speculator`: recent text of"
        " all requests of the same tenant (requests that name no tenant count as one). A client who measures time can"
        " then find out whether a text that it guesses was in another client's request, as with SGLang's prefix cache."
        " `Request`: only the request's own prompt and answer, which gives nothing away and is slower where requests"
        " resemble each other. `Off`: none. Pods restart one by one when it changes.",
    )

    @property
    def adaptive(self) -> bool:
        """Whether the engine chooses the size of each verify round."""
        return self.shape is Shape.ADAPTIVE

    def for_training(self) -> Self:
        """The draft without what only serving uses, so that a change of it restarts no trainer."""
        return self.model_copy(update={"shape": Shape.ADAPTIVE, "lookup": LookupScope.SPECULATOR})

    @property
    def tokens_per_round(self) -> int:
        """Most tokens that the target verifies in a round, the one that the round starts from included."""
        return self.steps + 1
