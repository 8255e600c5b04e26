"""Verifies draft trees against sampled tokens, where a request does not ask for greedy answers.

On a CPU SGLang verifies against the most likely token, whatever temperature a request has
(sglang/srt/speculative/eagle_utils.py, ``_verify_uses_greedy``), because its sampling kernels need a GPU. An engine
with speculation would then ignore the temperature of each token but the first. Here the target samples a token after
each node, with SGLang's own sampler, and a proposed token is accepted when it is the sampled one.

A proposed token is thus accepted with the probability that the target gives it, and the first sampled token that was
not proposed ends the round. So each token of the answer follows the target's distribution, whatever was proposed.

Invariant: the tokens of greedy requests are SGLang's own, also in a batch with others.

Letters in shapes: B requests, n nodes per tree, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

LARGE: Final = 1e30
"""Stands for an infinite logit. SGLang has the same number (sglang/srt/utils/async_probe.py)."""


@dataclass(frozen=True)
class _Round:
    """A verify round whose requests are not all greedy.

    Attributes:
        logits: [B*n, V]. SGLang applies penalties, biases and grammars in place before it verifies.
        sampling: SGLang's ``SamplingBatchInfo`` of the B requests.
        positions: [B*n] each node's position in its sequence.
    """

    logits: torch.Tensor
    sampling: Any
    positions: torch.Tensor


class SampledVerification:
    """The hooks of one scheduler process. SGLang calls both from one thread."""

    def __init__(self) -> None:
        self._round: _Round | None = None

    def round_begins(self, verify_input: Any, batch: Any, logits_output: Any, *args: Any, **kwargs: Any) -> None:
        """Before SGLang's ``eagle_sample``, which EAGLE-3 and NGRAM call."""
        self._round = None
        if not batch.forward_mode.is_idle() and not batch.sampling_info.is_all_greedy:
            self._round = _Round(logits_output.next_token_logits, batch.sampling_info, verify_input.positions)

    def verify(
        self,
        original: Callable[..., Any],
        predicts: torch.Tensor,
        accept_index: torch.Tensor,
        accept_token_num: torch.Tensor,
        candidates: torch.Tensor,
        retrieve_index: torch.Tensor,
        retrieve_next_token: torch.Tensor,
        retrieve_next_sibling: torch.Tensor,
        target_predict: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Around SGLang's ``verify_tree_greedy_func``: the target's choices [B, n] become sampled ones."""
        current, self._round = self._round, None
        if current is not None:
            sampled = sampled_tokens(current.logits, current.sampling, current.positions, candidates.shape[1])
            is_greedy = current.sampling.top_ks.view(-1, 1) <= 1  # SGLang's mark of a greedy request
            target_predict = torch.where(is_greedy, target_predict, sampled.view_as(target_predict))
        trees = (candidates, retrieve_index, retrieve_next_token, retrieve_next_sibling)
        return original(predicts, accept_index, accept_token_num, *trees, target_predict, *args, **kwargs)


def sampled_tokens(logits: torch.Tensor, sampling: Any, positions: torch.Tensor, nodes: int) -> torch.Tensor:
    """A token of the target after each node, [B*n], sampled as each request asks.

    Args:
        logits: [B*n, V], not changed.
        sampling: SGLang's ``SamplingBatchInfo`` of the B requests.
        positions: [B*n] each node's position in its sequence, which a request's seed is mixed with.
        nodes: n.
    """
    from sglang.srt.layers.sampler import sampling_from_probs_torch, top_k_top_p_min_p_sampling_from_probs_torch

    def of_nodes(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(nodes, dim=0)

    # A penalty or a grammar may leave a row without any token, and SGLang's sampler then raises.
    finite = logits.float().nan_to_num(nan=-LARGE, posinf=LARGE, neginf=-LARGE)
    probabilities = torch.softmax(finite / of_nodes(sampling.temperatures), dim=-1)
    seeds = None if sampling.sampling_seed is None else of_nodes(sampling.sampling_seed)
    if sampling.need_top_k_sampling or sampling.need_top_p_sampling or sampling.need_min_p_sampling:
        tokens: torch.Tensor = top_k_top_p_min_p_sampling_from_probs_torch(
            probabilities,
            of_nodes(sampling.top_ks),
            of_nodes(sampling.top_ps),
            of_nodes(sampling.min_ps),
            sampling.need_min_p_sampling,
            seeds,
            positions,
            max_top_k=sampling.max_top_k,
        )
    else:
        tokens = sampling_from_probs_torch(probabilities, seeds, positions)
    return tokens.long()
