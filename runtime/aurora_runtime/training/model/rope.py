"""The frequencies of a draft's rotary position embedding, with the scaling for long contexts.

Invariant: equal to transformers' and to SGLang's computation (0.5.23, layers/rotary_embedding) up to rounding. A type
of scaling that this module does not know is never computed as none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_protocol.rope_scaling import LINEAR, LLAMA3, RopeScaling
from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.engine.draft_rope import yarn_stretch


@dataclass(frozen=True)
class Rope:
    """At position ``p``, pair ``i`` is turned by ``p * frequencies[i]`` radians and stretched by ``stretch``."""

    frequencies: Tensor  # [rotary_dim / 2] float32
    stretch: float

    @classmethod
    def of(cls, config: DraftConfig) -> Rope:
        """The rope of a draft."""
        half, scaling = config.rotary_dim // 2, config.rope_scaling
        plain = config.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)
        if scaling is None:
            return cls(plain, 1.0)
        if scaling.rope_type == LINEAR:
            return cls(plain / scaling.factor, 1.0)
        if scaling.rope_type == LLAMA3:
            return cls(plain * _slowed(_llama3_kept_share(scaling, plain), scaling.factor), 1.0)
        kept = _yarn_kept_share(scaling, config)
        return cls(plain * _slowed(kept, scaling.factor), yarn_stretch(scaling))


def _slowed(kept: Tensor, factor: float) -> Tensor:
    """The share of each frequency that remains when the share ``kept`` of it is not divided by ``factor``."""
    return kept + (1 - kept) / factor


def _llama3_kept_share(scaling: RopeScaling, plain: Tensor) -> Tensor:
    """Llama 3.1: by how often a pair turns within the original length, between ``low_`` and ``high_freq_factor``."""
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert original is not None
    assert low is not None
    assert high is not None
    turns = original * plain / (2 * math.pi)
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn_kept_share(scaling: RopeScaling, config: DraftConfig) -> Tensor:
    """YaRN (arXiv 2309.00071): by the pair's index, between those that turn ``beta_fast`` and ``beta_slow`` times."""
    original, fast, slow = scaling.original_max_position_embeddings, scaling.beta_fast, scaling.beta_slow
    assert original is not None
    assert fast is not None
    assert slow is not None

    def index(turns: float) -> float:
        """The index of the pair that turns so many times within the original length."""
        return config.rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    first, last = index(fast), index(slow)
    if scaling.truncate is None or scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.rotary_dim - 1)
    if first == last:
        last += 0.001  # as the two libraries do
    pairs = torch.arange(config.rotary_dim // 2, dtype=torch.float32)
    return 1 - ((pairs - first) / (last - first)).clamp(0, 1)
