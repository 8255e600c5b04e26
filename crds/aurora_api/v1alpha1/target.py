"""``spec.target``: the model that is served."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from pydantic import Field

from aurora_api.base import Model, ObjectName
from aurora_api.v1alpha1.cel import matches, rules

MODEL_PATTERN: Final = r"^[A-Za-z0-9_./~][^\s\x00-\x1f\x7f]*$"
REVISION_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9._/-]*$"
MODEL_RULE: Final = matches(
    MODEL_PATTERN, "a model is a Hugging Face id or a path: it has no spaces and does not begin with '-'"
)
REVISION_RULE: Final = matches(
    REVISION_PATTERN, "a revision is a git branch, tag or commit: letters, digits, '.', '_', '/' and '-', not '-' first"
)


MODEL_MOUNT: Final = "/model"
"""Where the pods see a model that comes from a volume."""


class DType(StrEnum):
    """Computation types of SGLang's ``--dtype``."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class TokenSecretRef(Model):
    """An item of a Secret in the speculator's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: str = Field(
        default="token", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="Item of the Secret."
    )


class HuggingFaceSource(Model):
    """A gated or private model of Hugging Face."""

    token_secret_ref: TokenSecretRef = Field(description="The token that may read the model.")


class ClaimSource(Model):
    """A model on a volume."""

    claim_name: ObjectName = Field(
        description="PersistentVolumeClaim in the speculator's namespace, which the pods of several nodes can read."
    )


class ImageSource(Model):
    """A model in an OCI image, which Kubernetes mounts as an image volume (KEP-4639)."""

    reference: str = Field(
        min_length=1,
        max_length=512,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
        description="The image, with its registry and tag.",
    )


class ModelSource(Model):
    """Where the pods get the model's files. Set exactly one of the fields."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "[has(self.huggingFace), has(self.pvc), has(self.image)].filter(set, set).size() == 1",
                "set exactly one of huggingFace, pvc and image",
            ),
        )
    }

    hugging_face: HuggingFaceSource | None = Field(
        default=None, description="Hugging Face, with a token: a gated or private model."
    )
    pvc: ClaimSource | None = Field(default=None, description="A volume that holds the model's files.")
    image: ImageSource | None = Field(
        default=None, description="An OCI image that holds the model's files, mounted as an image volume (KEP-4639)."
    )


class TargetSpec(Model):
    """The model that is served. Create another AuroraSpeculator for another target: only `source` can be changed."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                f"!has(self.source) || has(self.source.huggingFace) || (self.model + '/').startsWith('{MODEL_MOUNT}/')",
                f"model must be {MODEL_MOUNT}, or a path below it: there the pods see the volume of target.source",
            ),
        )
    }

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
    source: ModelSource | None = Field(
        default=None,
        description=f"Where engines, trainer and validators get the model's files. A volume is mounted read-only at"
        f" `{MODEL_MOUNT}`. Unset: Hugging Face without a token, or what the templates mount.",
    )

    def without_source(self) -> Self:
        """What identifies the model in the pods."""
        return self.model_copy(update={"source": None})
