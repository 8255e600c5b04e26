"""Runs the draft over pending tokens, so that its KV cache is as if it had processed every round.

One pass of the draft over the pending tokens of several requests, of different lengths, as SGLang runs the draft over
prompts (``EagleDraftWorker._draft_extend_for_prefill``, sglang/srt/speculative/eagle_worker_v2.py:978).

Invariant: afterwards position ``i`` of the draft's KV cache holds the token at ``i + 1`` and the target's state at
``i``, for every committed position ``i``, as after SGLang's own extend of each verify round.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aurora_runtime.pinned_copy import to_device
from aurora_runtime.serving.speculation.worker.pending_tokens import CatchUpInput


@dataclass(frozen=True)
class LateRequest:
    """A request whose draft KV cache is behind.

    Attributes:
        req: SGLang's request.
        row: its row in the request table.
        length: committed tokens in the target's KV cache.
        pending: how many of them the draft has not processed.
    """

    req: Any
    row: int
    length: int
    pending: int


@dataclass(frozen=True)
class DraftStart:
    """What the draft's chain starts from, for R requests.

    Attributes:
        topk_p, topk_index: [R, 1] the first proposed token, in the draft's vocabulary.
        hidden_states: [R, H] the draft's own state.
    """

    topk_p: Tensor
    topk_index: Tensor
    hidden_states: Tensor


@contextlib.contextmanager
def draft_contexts(draft_worker: Any) -> Iterator[None]:
    """SGLang's contexts around every pass of the draft (sglang/srt/speculative/eagle_worker_v2.py:1474).

    SGLang 0.5.23 places the draft by a layout. SGLang 0.5.22 asks only whether the draft's attention has ranks of its
    own, and each worker keeps what its version's ``draft_tp_context`` takes.
    """
    from sglang.srt.layers.moe.utils import speculative_moe_a2a_backend_context, speculative_moe_backend_context
    from sglang.srt.speculative.spec_utils import draft_tp_context

    has_layout = hasattr(draft_worker, "parallel_layout")
    placement = draft_worker.parallel_layout if has_layout else draft_worker.draft_owns_attention
    with (
        draft_tp_context(placement),
        speculative_moe_backend_context(),
        speculative_moe_a2a_backend_context(),
    ):
        yield


def catch_up(draft_worker: Any, batch: Any, late: Sequence[LateRequest], pending: CatchUpInput) -> DraftStart:
    """Process the pending tokens of the requests ``late`` inside :func:`draft_contexts`.

    ``batch`` is not changed. It lends only what all batches of the engine have in common.
    """
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch

    extend = _extend_batch(draft_worker, batch, late, pending)
    forward_batch = ForwardBatch.init_new(
        extend,
        draft_worker.draft_runner,
        capture_hidden_mode=CaptureHiddenMode.LAST,
        return_hidden_states_before_norm=False,
    )
    forward_batch.return_logprob = False
    output = draft_worker.draft_runner.forward(forward_batch).logits_output
    topk_index = torch.argmax(output.next_token_logits, dim=-1, keepdim=True)
    return DraftStart(torch.ones_like(topk_index, dtype=torch.float32), topk_index, output.hidden_states)


def _extend_batch(draft_worker: Any, batch: Any, late: Sequence[LateRequest], pending: CatchUpInput) -> Any:
    """A batch that prefills the pending tokens behind the draft's KV cache of each request.

    Every field with a row per request that the draft reads is set to the late requests. ``sampling_info`` is a copy,
    because ``ForwardBatch.init_new`` writes the grammars of the batch's requests into it
    (sglang/srt/model_executor/forward_batch_info.py:1004).
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.speculative.eagle_info import EagleDraftExtendInput

    device = pending.tokens.device
    table = draft_worker.req_to_token_pool.req_to_token
    rows, lengths = [request.row for request in late], [request.length for request in late]
    extend = copy.copy(batch)
    extend.sampling_info = copy.copy(batch.sampling_info)
    extend.reqs = [request.req for request in late]
    extend.forward_mode = ForwardMode.EXTEND
    extend.input_ids = pending.tokens
    extend.req_pool_indices = to_device(rows, device)
    extend.req_pool_indices_cpu = torch.tensor(rows)
    extend.seq_lens_cpu = torch.tensor(lengths)
    extend.seq_lens = to_device(lengths, device)
    extend.orig_seq_lens = extend.seq_lens.to(torch.int32)
    extend.seq_lens_sum = sum(lengths)
    extend.out_cache_loc = torch.cat([table[r.row, r.length - r.pending : r.length] for r in late]).to(torch.int64)
    extend.prefix_lens = [request.length - request.pending for request in late]
    extend.extend_lens = [request.pending for request in late]
    extend.extend_num_tokens = sum(extend.extend_lens)
    extend.extend_logprob_start_lens = list(extend.extend_lens)
    extend.return_logprob = False
    extend.top_logprobs_nums = extend.token_ids_logprobs = None
    extend.multimodal_inputs = [None] * len(late)
    extend.spec_info = EagleDraftExtendInput(
        hidden_states=pending.hidden, num_tokens_per_req=1, num_tokens_for_logprob_per_req=1
    )
    return extend


def replace_rows(draft_input: Any, rows: Sequence[int], start: DraftStart) -> None:
    """Let the chains of the batch's ``rows`` start from ``start``. Other rows stay as they are."""
    index = to_device(rows, start.topk_index.device)
    for name, rows_of_start in vars(start).items():
        whole = getattr(draft_input, name)
        setattr(draft_input, name, whole.index_copy(0, index, rows_of_start.to(whole.dtype)))
