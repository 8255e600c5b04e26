"""A draft that knows nothing of the target: what the default initialisation is compared with.

Layer and head are random; how the target's states come in (``fc``, which passes the topmost one through) stays, so that
the comparison is of the copied weights alone. Invariant: the same seed gives the same weights.
"""

from __future__ import annotations

from typing import Final

import torch

from aurora_runtime.training.model.draft import DraftModel

SPREAD: Final = 0.02
"""What Llama's own initialisation takes."""


@torch.no_grad()
def randomise(draft: DraftModel, seed: int) -> None:
    """Forget what the target lent to ``draft``'s layer, norms and head."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in draft.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        elif not name.startswith("fc."):
            parameter.normal_(0.0, SPREAD, generator=generator)
