"""Says who proposed the nodes of made-up verify rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from aurora_runtime.traces import ProposalSource


def sources_without_controller(node_count: Tensor) -> Tensor:
    """The sources of rounds ``[R]`` on a server that has only the draft: the draft wherever there is a proposal."""
    return torch.where(node_count > 1, ProposalSource.DRAFT, ProposalSource.NONE).to(torch.uint8)
