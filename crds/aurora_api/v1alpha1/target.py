"""``spec.target``: the model that is served."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from aurora_api.base import Model


class DType(StrEnum):
    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class TargetSpec(Model):
    """The model that is served. Another target is another speculator."""

    model: str = Field(min_length=1, max_length=512, description="Hugging Face id, or a path inside the pods.")
    revision: str | None = Field(default=None, max_length=128, description="Git revision of a Hugging Face model.")
    dtype: DType = Field(default=DType.AUTO, description="Computation type, as SGLang's --dtype.")
