"""``spec.target``: the model that is served."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.cel import matches

MODEL_PATTERN: Final = r"^[A-Za-z0-9_./~][^\s\x00-\x1f\x7f]*$"
REVISION_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$"
MODEL_RULE: Final = matches(
    MODEL_PATTERN, "a model is a Hugging Face id or a path: it has no spaces and does not begin with '-'"
)
REVISION_RULE: Final = matches(
    REVISION_PATTERN, "a revision is a git branch, tag or commit: letters, digits, '.', '_', '/' and '-', not '-' first"
)


class DType(StrEnum):
    """Computation types of SGLang's ``--dtype``."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class TargetSpec(Model):
    """The model that is served. Immutable: create another AuroraSpeculator for another target."""

    model: str = Field(
        min_length=1,
        max_length=512,
        pattern=MODEL_PATTERN,
        json_schema_extra=MODEL_RULE,
        description="Hugging Face id (`Qwen/Qwen3-8B`), or a path inside the pods.",
    )
    revision: str | None = Field(
        default=None,
        max_length=128,
        pattern=REVISION_PATTERN,
        json_schema_extra=REVISION_RULE,
        description="Git branch, tag or commit of a Hugging Face model. Unset: its main branch. Set a commit to make"
        " sure that every pod serves the same weights.",
    )
    dtype: DType = Field(
        default=DType.AUTO,
        description="Computation type, as SGLang's --dtype. `auto` takes the type of the checkpoint.",
    )
