"""How a draft's rotary position embedding is scaled for long contexts, as the lineage's record keeps it.

Invariant: the names and values are those of ``rope_scaling`` in a Hugging Face ``config.json``, so that no translation
can go wrong.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from aurora_api.base import Model

LINEAR, LLAMA3, YARN = ("linear", "llama3", "yarn")
ORIGINAL: Final = "original_max_position_embeddings"
REQUIRED_FIELDS: Final = {
    LINEAR: ("factor",),
    LLAMA3: ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL),
    YARN: ("factor", "beta_fast", "beta_slow", ORIGINAL),
}
MAX_FACTOR: Final = 1e6
"""Largest factor, and largest bound of a band of frequencies."""


class RopeScaling(Model):
    """The scaling of a rotary position embedding. The fields that a type does not use are None."""

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: float = Field(ge=1, le=MAX_FACTOR, description="By what the slow rotations are slowed down further.")
    original_max_position_embeddings: int | None = Field(
        default=None, gt=0, le=1 << 30, description="Longest sequence before the scaling, in tokens. llama3, yarn."
    )
    low_freq_factor: float | None = Field(
        default=None,
        gt=0,
        le=MAX_FACTOR,
        description="llama3: what turns fewer times within the original length is slowed by the whole factor.",
    )
    high_freq_factor: float | None = Field(
        default=None,
        gt=0,
        le=MAX_FACTOR,
        description="llama3: what turns more often within the original length is not slowed.",
    )
    beta_fast: float | None = Field(
        default=None, gt=0, le=MAX_FACTOR, description="yarn: what turns more often is not slowed."
    )
    beta_slow: float | None = Field(
        default=None, gt=0, le=MAX_FACTOR, description="yarn: what turns fewer times is slowed by the whole factor."
    )
    truncate: bool | None = Field(
        default=None, description="yarn: whether the bounds of the band are rounded to whole indices. None: they are."
    )
    mscale: float | None = Field(
        default=None,
        gt=0,
        le=MAX_FACTOR,
        description="yarn: with mscale_all_dim, replaces the stretch of queries and keys. None: it is YaRN's own.",
    )
    mscale_all_dim: float | None = Field(
        default=None, gt=0, le=MAX_FACTOR, description="yarn: present exactly when mscale is."
    )

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        for name in REQUIRED_FIELDS[self.rope_type]:
            if getattr(self, name) is None:
                raise ValueError(name)
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ValueError("high_freq_factor")
        if (self.mscale is None) != (self.mscale_all_dim is None):
            raise ValueError("mscale" if self.mscale is None else "mscale_all_dim")
        return self
