"""The most likely target tokens of each position, as traces hold them."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_TOKENS: Final = 64
ROWS_PER_CHUNK: Final = 4
"""Rows that a CPU scans at a time: their temporary tensors fit into its cache, and cost no new pages."""
LOWEST_LOGPROB: Final = -1e4
"""Grammar masks make logits -inf. float16 can represent this value, and 0 times this value is 0."""


def top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` most likely tokens of each row of ``logits`` ``[N, V]``.

    These tokens lie in the ``k`` blocks with the highest maxima, so only those blocks are sorted. The probabilities
    need the log-sum-exp of a row, and not its softmax.

    Returns: ids ``[N, k]``, log-probabilities ``[N, k]``, and the probability of all other tokens ``[N]``.
    """
    return select_tokens(logits, *_scan(logits), k)


def _scan(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each block, and the log-sum-exp, of each row of ``logits`` as :func:`select_tokens` takes them."""
    if logits.device.type != "cpu" or logits.shape[0] <= ROWS_PER_CHUNK:
        return _scan_scores(logits.float())
    starts = range(0, logits.shape[0], ROWS_PER_CHUNK)
    maxima, log_sums = zip(
        *(_scan_scores(logits[start : start + ROWS_PER_CHUNK].float()) for start in starts), strict=True
    )
    return torch.cat(maxima), torch.cat(log_sums)


def select_tokens(logits: Tensor, maxima: Tensor, log_sum: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`top_tokens` of logits that were scanned.

    Args:
        maxima: the maximum of each block of :data:`BLOCK_TOKENS` tokens, ``[N, ceil(V / BLOCK_TOKENS)]``.
        log_sum: ``log(sum(exp(logit - row's maximum)))``, ``[N, 1]``.
    """
    vocabulary = logits.shape[-1]
    k = min(k, vocabulary)
    best = maxima.topk(min(k, maxima.shape[1]), dim=-1, sorted=False).indices.unsqueeze(-1)
    tokens = (best * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS, device=logits.device)).flatten(1)
    ids = tokens.clamp(max=vocabulary - 1)
    candidates = logits.gather(1, ids).float().masked_fill_(tokens >= vocabulary, -torch.inf)
    highest, at = candidates.topk(k, dim=-1)
    logprobs = highest - highest[:, :1] - log_sum
    uncaptured_mass = (1 - logprobs.exp().sum(-1)).clamp_(0, 1)
    chosen = ids.gather(1, at)  # past the last token, and so clamped, only where a grammar masks nearly all
    return chosen.to(torch.int32), logprobs.clamp_(min=LOWEST_LOGPROB).half(), uncaptured_mass.half()


def _scan_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each block of float32 ``scores`` ``[N, V]``, and ``log(sum(exp(score - row's maximum)))``."""
    padding = -scores.shape[-1] % BLOCK_TOKENS
    blocks = F.pad(scores, (0, padding), value=-torch.inf) if padding else scores
    maxima = blocks.reshape(scores.shape[0], -1, BLOCK_TOKENS).amax(-1)
    return maxima, (scores - maxima.amax(-1, keepdim=True)).exp_().sum(-1, keepdim=True).log()
