"""Gives a draft random initial weights, for comparison with the default, which copies the target's weights.

The layer and the head are random. The projection of the target's states (``fc``, which passes the topmost state
through) stays, so that the comparison is about the copied weights alone.

Invariant: the same seed gives the same weights.
"""

from __future__ import annotations

from typing import Final

import torch

from aurora_runtime.training.model.draft import DraftModel

STANDARD_DEVIATION: Final = 0.02
"""Llama's own initialisation uses the same standard deviation."""


@torch.no_grad()
def randomise(draft: DraftModel, seed: int) -> None:
    """Replace the weights that the layer, the norms and the head of ``draft`` copied from the target."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in draft.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        elif not name.startswith("fc."):
            parameter.normal_(0.0, STANDARD_DEVIATION, generator=generator)
