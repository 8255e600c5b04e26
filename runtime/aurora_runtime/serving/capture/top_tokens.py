"""The most likely target tokens of each position, as traces hold them."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_TOKENS: Final = 64
ROWS_PER_CHUNK: Final = 4
"""Rows that a CPU computes at a time: their temporary tensors fit into its cache, and cost no new pages."""
LOWEST_LOGPROB: Final = -1e4
"""Grammar masks make logits -inf. float16 can represent this value, and 0 times this value is 0."""


def top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` most likely tokens of each row of ``logits`` ``[N, V]``.

    These tokens lie in the ``k`` blocks with the highest maxima, so only those blocks are sorted. The probabilities
    need the log-sum-exp of a row, and not its softmax.

    Returns: ids ``[N, k]``, log-probabilities ``[N, k]``, and the probability of all other tokens ``[N]``.
    """
    if logits.device.type != "cpu" or logits.shape[0] <= ROWS_PER_CHUNK:
        return _top_tokens(logits, k)
    starts = range(0, logits.shape[0], ROWS_PER_CHUNK)
    chunks = [_top_tokens(logits[start : start + ROWS_PER_CHUNK], k) for start in starts]
    ids, logprobs, uncaptured_mass = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return ids, logprobs, uncaptured_mass


def _top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    scores = logits.float()
    vocabulary = scores.shape[-1]
    k = min(k, vocabulary)
    padding = -vocabulary % BLOCK_TOKENS
    blocks = F.pad(scores, (0, padding), value=-torch.inf) if padding else scores
    blocks = blocks.reshape(scores.shape[0], -1, BLOCK_TOKENS)
    best = blocks.amax(-1).topk(min(k, blocks.shape[1]), dim=-1, sorted=False).indices.unsqueeze(-1)
    candidates = blocks.gather(1, best.expand(-1, -1, BLOCK_TOKENS)).flatten(1)
    tokens = (best * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS, device=scores.device)).flatten(1)
    highest, at = candidates.topk(k, dim=-1)
    offset = highest[:, :1]
    log_sum = (scores - offset).exp_().sum(-1, keepdim=True).log()
    logprobs = highest - offset - log_sum
    ids = tokens.gather(1, at).clamp_(max=vocabulary - 1)  # padding is chosen only where a grammar masks nearly all
    uncaptured_mass = (1 - logprobs.exp().sum(-1)).clamp_(0, 1)
    return ids.to(torch.int32), logprobs.clamp_(min=LOWEST_LOGPROB).half(), uncaptured_mass.half()
