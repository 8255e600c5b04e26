"""Brings the tokens of a verify round to the host before the next round is decided, under overlap scheduling.

With overlap the scheduler launches round N+1 before it processes the results of round N, so its requests lack the
tokens of round N. SGLang waits for the new lengths of round N before the launch, though, when an attention backend or
the hooks need them on the host (sglang/srt/managers/overlap_utils.py:26). The hooks then queue a copy of the round's
tokens in front. The copy has then arrived as well, and nobody waits for it.

Invariant: reading the results of a round never waits for a later pass than the round's own verification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class EarlyResults:
    """A round's results on their way to the host: B requests, n nodes each (a chain).

    Attributes:
        tokens: [B, n] the target's token after each node.
        accept_lens: [B] committed tokens of each request, the target's own included.
        arrived: event after the copies; None when the tensors were on the host from the start.
    """

    tokens: Tensor
    accept_lens: Tensor
    arrived: Any | None

    def committed(self) -> list[list[int]]:
        """The committed tokens of each request."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [row[:count] for row, count in zip(self.tokens.tolist(), self.accept_lens.tolist(), strict=True)]


def start_copy(batch_result: Any) -> EarlyResults:
    """Queue the copies of a verified batch on the current stream."""
    accept_lens: Tensor = batch_result.accept_lens
    tokens: Tensor = batch_result.next_token_ids.view(accept_lens.shape[0], -1)
    if tokens.device.type == "cpu":
        return EarlyResults(tokens, accept_lens, None)
    copies = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in (tokens, accept_lens)
    ]
    arrived = torch.get_device_module(tokens.device).Event()
    arrived.record()
    return EarlyResults(copies[0], copies[1], arrived)
