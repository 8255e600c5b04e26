"""What was rejected: the nodes of a request's verify rounds that the draft proposed and the target did not take.

The target was asked about them all the same, so the distribution it would have followed each with is known (a
counterfactual teacher). Invariant: every node hangs below an accepted node of its round or below another node here, and
parents come before children, so that the trees can be unrolled as they were served.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import RequestTrace

MAX_STEPS: Final = 16
"""Bound of ``draft.steps`` in the custom resource; training unrolls fewer."""
ROUND_BRANCHES: Final = 8
"""Rejected nodes kept per round, the shallow ones first: wide trees must not crowd out what was accepted."""


@dataclass(frozen=True)
class Branches:
    """``X`` rejected nodes, by round and depth."""

    slot: Tensor  # [X] int32: where the draft stood when it proposed them, relative to the example's start
    depth: Tensor  # [X] int8: below the round's root, from 1
    parent: Tensor  # [X] int32: index among the X, -1 where the parent was accepted
    token: Tensor  # [X] int32
    teacher_ids: Tensor  # [X, K] int32, target ids
    teacher_probs: Tensor  # [X, K] float16
    teacher_rest: Tensor  # [X] float16

    def __len__(self) -> int:
        return self.slot.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in vars(self).values())

    def within(self, first: int, end: int, start: int) -> Branches:
        """Those proposed at slots ``first``…``end - 1``, with slots counted from ``start``; own memory."""
        kept = (self.slot >= first) & (self.slot < end)
        place = (kept.cumsum(0) - 1).to(torch.int32)
        mine = {name: tensor[kept] for name, tensor in vars(self).items()}
        parent = mine["parent"]
        mine["parent"] = torch.where(parent >= 0, place[parent.clamp(min=0).long()], -1) if len(parent) else parent
        mine["slot"] = mine["slot"] - start
        return dataclasses.replace(self, **mine)


def said(trace: RequestTrace, nodes: Tensor, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the target said at ``nodes``: target ids ``[N, K]`` int32, their probabilities float16, and the rest ``[N]``
    float16. Raises :class:`TraceFormatError` for ids outside the target's ``vocab`` and for what is not a number."""
    ids = trace.top_ids[nodes].to(torch.int32)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise TraceFormatError("top-k ids outside the target's vocabulary")
    if bool(trace.top_logprobs[nodes].isnan().any()) or bool(trace.rest[nodes].isnan().any()):
        raise TraceFormatError("what the target said is not a number")
    return ids, trace.top_logprobs[nodes].float().exp().to(torch.float16), trace.rest[nodes].to(torch.float16)


def branches_of(trace: RequestTrace, vocab: int) -> Branches:
    """The rejected nodes of ``trace``; slots are relative to ``hidden_start``. What hangs below the answer's last token
    is left out: nothing follows there. Raises :class:`TraceFormatError` for nodes that cannot be, in the target's
    ``vocab`` or in their tree."""
    count = trace.node_count.long()
    first = count.cumsum(0) - count
    round_of = torch.repeat_interleave(torch.arange(count.numel()), count)
    up = trace.node_parent.long()
    if bool((up >= count[round_of]).any()):
        raise TraceFormatError("a node's parent lies outside its round")
    drafted = trace.node_token
    if drafted.numel() and not 0 <= int(drafted.min()) <= int(drafted.max()) < vocab:
        raise TraceFormatError("drafted ids outside the target's vocabulary")
    parent = (first[round_of] + up).clamp(min=0)
    depth, fork = _depths(torch.arange(round_of.numel()) == first[round_of], up >= 0, parent, trace.node_accepted)
    root = trace.root.long()[round_of]
    slot = root - 1 - trace.hidden_start
    follows = root + fork < trace.tokens.shape[0] - 1
    nodes = (~trace.node_accepted & (depth > 0) & follows & (slot >= 0)).nonzero().flatten()
    nodes = nodes[torch.argsort(round_of[nodes] * (MAX_STEPS + 1) + depth[nodes], stable=True)]
    per_round = torch.bincount(round_of[nodes], minlength=count.numel())
    rank = torch.arange(nodes.numel()) - (per_round.cumsum(0) - per_round)[round_of[nodes]]
    nodes = nodes[rank < ROUND_BRANCHES]
    place = torch.full((round_of.numel(),), -1, dtype=torch.int32)
    place[nodes] = torch.arange(nodes.numel(), dtype=torch.int32)
    ids, probs, rest = said(trace, nodes, vocab)
    return Branches(
        slot=slot[nodes].to(torch.int32),
        depth=depth[nodes].to(torch.int8),
        parent=place[parent[nodes]],
        token=trace.node_token[nodes],
        teacher_ids=ids,
        teacher_probs=probs,
        teacher_rest=rest,
    )


def _depths(is_root: Tensor, linked: Tensor, parent: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor]:
    """Depth of every node ``[M]`` (-1 where no link reaches it), and that of its last accepted ancestor or itself."""
    depth = torch.where(is_root, 0, -1)
    fork = torch.where(is_root, 0, -1)
    for d in range(1, MAX_STEPS + 1):
        reached = linked & ~is_root & (depth < 0) & (depth[parent] == d - 1)
        if not bool(reached.any()):
            break
        fork = torch.where(reached, torch.where(accepted, d, fork[parent]), fork)
        depth = torch.where(reached, d, depth)
    return depth, fork
