"""The tensors of one verify batch: as SGLang leaves them after sampling, and reduced to what a trace keeps.

The reduction reads every logit, so it is the dearest part of capture. On a GPU it runs in the hook, because the next
batch overwrites the tensors. On a CPU the engine allocates logits and hidden states anew for each batch and changes
neither after sampling. There the hook only keeps references, and the writer's thread reduces them. It reduces at once
when a request of the batch asks not to be traced, because the references would keep that request's states too.

Letters in shapes: B requests in the batch, R traced ones, n nodes a request, s + 1 places of the accepted path, V
tokens of the vocabulary, K kept tokens, H3 width of the auxiliary hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from aurora_runtime.serving.capture.request_filter import TracedRequest

BLOCK_TOKENS: Final = 64
ROWS_PER_CHUNK: Final = 4
"""Rows that a CPU scans at a time: their temporary tensors fit into its cache, and cost no new pages."""
CHUNK_BYTES: Final = 64 << 20
"""Largest temporary tensor of a scan on a GPU, whose memory SGLang has planned without it."""
LOWEST_LOGPROB: Final = -1e4
"""Grammar masks make logits -inf. float16 can represent this value, and 0 times this value is 0."""


def select_rows(tensor: Tensor, batch_size: int, traced: Sequence[TracedRequest]) -> Tensor:
    """The rows of the R traced requests: ``[B * n, ...]`` to ``[R, n, ...]``. A view where all requests are traced.

    The indices are Python numbers, so nothing is sent to the device.
    """
    whole = tensor.reshape(batch_size, -1, *tensor.shape[1:])
    if len(traced) == batch_size:
        return whole
    return torch.stack([whole[request.index] for request in traced])


def to_trace_dtype(hidden: Tensor) -> Tensor:
    """Hidden states in 16 bits; float32 becomes bfloat16, because float16 lacks its range."""
    return hidden.to(torch.bfloat16) if hidden.dtype == torch.float32 else hidden


@dataclass(frozen=True)
class ReducedVerify:
    """What traces keep of a verify batch. No tensor shares memory with the engine."""

    draft_tokens: Tensor  # [R, n]
    next_token: Tensor  # [R, n]
    next_sibling: Tensor  # [R, n]
    path: Tensor  # [R, s + 1] node indices within the request; below 0 after the path's end
    path_length: Tensor  # [R] accepted proposed tokens + 1
    hidden: Tensor  # [R, s + 1, H3] of the path's nodes, in 16 bits
    top_ids: Tensor  # [R, n, K]
    top_logprobs: Tensor  # [R, n, K]
    uncaptured_mass: Tensor  # [R, n] probability of all other tokens

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in vars(self).values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All tensors on the host but the hidden states, by name. They share the tensors' memory."""
        return {name: tensor.numpy() for name, tensor in vars(self).items() if name != "hidden"}

    def copied(self, copy_tensor: Callable[[Tensor], Tensor]) -> ReducedVerify:
        return ReducedVerify(**{name: copy_tensor(tensor) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class VerifyTensors:
    """The tensors of a verify batch right after sampling."""

    draft_tokens: Tensor  # [B * n]
    next_token: Tensor  # [B, n] first child of each node, -1 for none
    next_sibling: Tensor  # [B, n] next child of the same parent, -1 for none
    accept_index: Tensor  # [B, s + 1] accepted nodes, counted through the batch, -1 after the path's end
    accept_lens: Tensor  # [B] accepted proposed tokens + 1
    hidden: Tensor  # [B * n, H3]
    logits: Tensor  # [B * n, V]

    @classmethod
    def of(cls, result: Any, verify_input: Any, logits_output: Any) -> VerifyTensors:
        """From the result and the arguments of SGLang's ``eagle_sample``.

        The nodes and links are copied, because whoever proposed them may reuse their memory.
        """
        _, accept_lens, accept_index = result
        return cls(
            draft_tokens=verify_input.draft_token.clone(),
            next_token=verify_input.retrieve_next_token.clone(),
            next_sibling=verify_input.retrieve_next_sibling.clone(),
            accept_index=accept_index,
            accept_lens=accept_lens,
            hidden=logits_output.hidden_states,
            logits=logits_output.next_token_logits,
        )

    @property
    def outlives_the_batch(self) -> bool:
        """Whether the engine leaves these tensors alone after the batch."""
        return self.logits.device.type == "cpu"

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes + self.logits.nbytes

    def reduced(self, batch_size: int, traced: Sequence[TracedRequest], k: int) -> ReducedVerify:
        """The tensors of the ``traced`` requests, with the ``k`` most likely tokens of each node."""
        path = self.accept_index.reshape(batch_size, -1).long()
        states = self.hidden.index_select(0, path.clamp(min=0).reshape(-1))
        nodes = self.draft_tokens.numel() // batch_size
        first_node = torch.arange(batch_size, device=path.device).unsqueeze(1) * nodes
        ids, logprobs, uncaptured_mass = top_tokens(select_rows(self.logits, batch_size, traced).flatten(0, 1), k)
        shape = (len(traced), nodes)
        return ReducedVerify(
            draft_tokens=select_rows(self.draft_tokens, batch_size, traced),
            next_token=select_rows(self.next_token.reshape(-1), batch_size, traced),
            next_sibling=select_rows(self.next_sibling.reshape(-1), batch_size, traced),
            path=select_rows((path - first_node).reshape(-1), batch_size, traced),
            path_length=select_rows(self.accept_lens, batch_size, traced).clone().reshape(-1),
            hidden=to_trace_dtype(select_rows(states, batch_size, traced)),
            top_ids=ids.reshape(*shape, -1),
            top_logprobs=logprobs.reshape(*shape, -1),
            uncaptured_mass=uncaptured_mass.reshape(shape),
        )


def top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` most likely tokens of each row of ``logits`` ``[N, V]``.

    These tokens lie in the ``k`` blocks with the highest maxima, so only those blocks are sorted. The probabilities
    need the log-sum-exp of a row, and not its softmax.

    Returns: ids ``[N, k]``, log-probabilities ``[N, k]``, and the probability of all other tokens ``[N]``.
    """
    maxima, log_sum = _scan(logits)
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


def _scan(logits: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of ``logits``, the maximum of each block and ``log(sum(exp(logit - row's maximum)))``."""
    rows = ROWS_PER_CHUNK if logits.device.type == "cpu" else max(1, CHUNK_BYTES // (4 * logits.shape[1]))
    maxima, log_sums = zip(*(_scan_scores(chunk.float()) for chunk in torch.split(logits, rows)), strict=True)
    return torch.cat(maxima), torch.cat(log_sums)


def _scan_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum of each block of float32 ``scores`` ``[N, V]``, and ``log(sum(exp(score - row's maximum)))``."""
    padding = -scores.shape[-1] % BLOCK_TOKENS
    blocks = F.pad(scores, (0, padding), value=-torch.inf) if padding else scores
    maxima = blocks.reshape(scores.shape[0], -1, BLOCK_TOKENS).amax(-1)
    return maxima, (scores - maxima.amax(-1, keepdim=True)).exp_().sum(-1, keepdim=True).log()
