"""From traces to examples: which slots are trained, on which teachers.

Invariant: every root is one that serving can draft from (the slot of the last prompt token or later), every teacher a
distribution that the target really had there. Prompt slots only lend their keys and values, unless prompt positions
are given a weight. All ids are the target's, so that an example outlives the draft's vocabulary map.

Slots and positions are relative to the example's ``start``. The state at slot ``t`` proposes token ``t+2``, so step
``j`` at root ``t`` is taught by the target's distribution at position ``t+1+j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.rejected_nodes import MAX_STEPS, Branches, branches_of, said

MAX_ROOTS: Final = 512
MAX_SLOTS: Final = 4096
"""A longer request is cut into examples of at most this many roots, each seeing at most this many slots."""


@dataclass(frozen=True)
class Example:
    """Up to :data:`MAX_ROOTS` consecutive roots of one request, with the slots that they may attend to."""

    start: int  # absolute position of slot 0
    first_root: int
    roots: int
    fresh: int  # positions that count as seen for the first time with this example
    tokens: Tensor  # [T + 1] int32: tokens at slots 0…T; the state at T itself is not needed
    aux: Tensor  # [T, 3H]
    teacher_ids: Tensor  # [T + 1, K] int32, target ids, -1 where there is none; rows by position
    teacher_probs: Tensor  # [T + 1, K] float16
    teacher_rest: Tensor  # [T + 1] float16
    weight: Tensor  # [T + 1] float16: 0 where there is no teacher
    accepted: Tensor  # [roots] int8: drafts accepted of the round that was proposed at the root, -1 where none was
    branches: Branches

    @property
    def slots(self) -> int:
        return self.aux.shape[0]

    @property
    def nbytes(self) -> int:
        own = sum(t.numel() * t.element_size() for t in vars(self).values() if isinstance(t, Tensor))
        return own + self.branches.nbytes


def examples_of(trace: RequestTrace, vocab: int, prompt_weight: float = 0.0, known: int = 0) -> list[Example]:
    """A trace's examples, of which the first ``known`` positions do not count as fresh; none when no root has both a
    state and a teacher. Raises :class:`TraceFormatError` for token ids outside the target's ``vocab``."""
    tokens = trace.tokens[trace.hidden_start :]
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise TraceFormatError("token ids outside the target's vocabulary")
    ids, probs, rest, weight = _teachers(trace, vocab, prompt_weight)
    taught = weight.nonzero().flatten()
    last_slot = min(trace.hidden.shape[0], tokens.numel() - 1) - 1
    first = 0 if prompt_weight else max(trace.prompt_length - 1 - trace.hidden_start, 0)
    if not taught.numel():
        return []
    last = min(last_slot, int(taught[-1]) - 1)
    first = max(first, int(taught[0]) - 1)
    accepted, branches = _rounds(trace), branches_of(trace, vocab)
    cut = []
    counted = known
    for root in range(first, last + 1, MAX_ROOTS):
        end = min(root + MAX_ROOTS, last + 1)
        begin = max(0, end - MAX_SLOTS)
        # One slot beyond the roots keeps the tokens and teachers of later steps within reach.
        stop = min(end + MAX_STEPS, last_slot + 1)
        final = end == last + 1
        fresh = max((trace.hidden.shape[0] if final else end) - counted, 0)
        counted += fresh
        rows = slice(begin, stop + 1)
        cut.append(
            Example(
                start=trace.hidden_start + begin,
                first_root=root - begin,
                roots=end - root,
                fresh=fresh,
                tokens=tokens[rows].clone(),
                aux=trace.hidden[begin:stop].clone(),
                teacher_ids=ids[rows].clone(),
                teacher_probs=probs[rows].clone(),
                teacher_rest=rest[rows].clone(),
                weight=weight[rows].clone(),
                accepted=accepted[root:end].clone(),
                branches=branches.within(root, end, begin),
            )
        )
    return cut


def _rounds(trace: RequestTrace) -> Tensor:
    """Drafts accepted of the round proposed at each slot ``[S]`` int8, -1 where none was: the state at ``t`` is the
    first to propose in the round whose root is token ``t + 1``."""
    accepted = torch.full((trace.hidden.shape[0],), -1, dtype=torch.int8)
    slot = trace.root.long() - 1 - trace.hidden_start
    inside = (slot >= 0) & (slot < accepted.numel())
    accepted[slot[inside]] = trace.accepted[inside].to(torch.int8)
    return accepted


def _teachers(trace: RequestTrace, vocab: int, prompt_weight: float) -> tuple[Tensor, ...]:
    """Teachers by position relative to ``hidden_start``: ids ``[L, K]``, probs ``[L, K]``, rest, weight ``[L]``."""
    length = trace.tokens.shape[0] - trace.hidden_start
    count = trace.node_count.long()
    round_of = torch.repeat_interleave(torch.arange(count.numel()), count)
    path = trace.node_accepted.long()
    # Depth on the accepted path: accepted nodes of the round up to this one, the root being 0.
    before = torch.cat([path.new_zeros(1), path.cumsum(0)])
    offset = before[count.cumsum(0) - count] if count.numel() else before[:0]
    depth = before[1:] - offset[round_of] - 1
    position = trace.root.long()[round_of] + depth - trace.hidden_start
    kept = trace.node_accepted & (position >= 0) & (position < length)
    at = position[kept]
    k = trace.top_ids.shape[1]
    ids = torch.full((length, k), -1, dtype=torch.int32)
    probs = torch.zeros(length, k, dtype=torch.float16)
    rest, weight = torch.zeros(length, dtype=torch.float16), torch.zeros(length, dtype=torch.float16)
    ids[at], probs[at], rest[at] = said(trace, kept.nonzero().flatten(), vocab)
    weight[at] = 1.0
    if prompt_weight:
        # In the prompt only the next token is known: a distribution with all its mass there.
        prompt = torch.arange(max(0, min(trace.prompt_length - trace.hidden_start, length - 1)))
        ids[prompt, 0] = trace.tokens[trace.hidden_start :][prompt + 1].to(torch.int32)
        probs[prompt, 0] = 1.0
        weight[prompt] = prompt_weight
    return ids, probs, rest, weight
