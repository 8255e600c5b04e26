"""Verify nodes that the draft proposed and the target rejected.

The target was evaluated at these nodes too, so the distribution that would have followed each rejected token is known:
a counterfactual distribution to train on. A rejected lookup is left out: the draft did not make that mistake, and would
seldom be asked to continue it.

Invariant: every node is below an accepted node of its round or below another rejected node, and parents come before
children, so that the trees can be unrolled as they were served.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.errors import TraceFormatError
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.captured import CapturedDistributions, captured_at

MAX_STEPS: Final = 16
"""Bound of ``draft.steps`` in the custom resource; training unrolls fewer."""
MAX_REJECTED_PER_ROUND: Final = 8
"""Rejected nodes kept per round, shallow ones first: wide trees must not crowd out the accepted nodes."""


@dataclass(frozen=True)
class RejectedNodes:
    """``X`` rejected nodes of one request or example, ordered by round and depth."""

    slot: Tensor  # [X] int32: slot of the state that proposed the round, relative to the example's start
    depth: Tensor  # [X] int8: below the round's root, from 1
    parent: Tensor  # [X] int32: index among the X, -1 where the parent was accepted
    token: Tensor  # [X] int32
    targets: CapturedDistributions  # X rows: the target's distribution after each node

    def __len__(self) -> int:
        return self.slot.shape[0]

    def proposed_within(self, first: int, end: int, start: int) -> RejectedNodes:
        """The nodes proposed at slots ``first`` to ``end - 1``, with slots counted from ``start``; own memory."""
        kept = (self.slot >= first) & (self.slot < end)
        new_index = (kept.cumsum(0) - 1).to(torch.int32)
        parent = self.parent[kept]
        if len(parent):
            parent = torch.where(parent >= 0, new_index[parent.clamp(min=0).long()], -1)
        return RejectedNodes(self.slot[kept] - start, self.depth[kept], parent, self.token[kept], self.targets[kept])


@dataclass(frozen=True)
class _RoundTrees:
    """The trees of all ``R`` verify rounds of a trace, over its ``M`` nodes."""

    node_count: Tensor  # [R] int64
    round_of: Tensor  # [M] int64
    is_root: Tensor  # [M] bool
    has_parent: Tensor  # [M] bool
    parent: Tensor  # [M] int64: index among the M, the round's root where there is no parent
    root_position: Tensor  # [M] int64: position of the round's root in the trace's tokens

    @classmethod
    def of(cls, trace: RequestTrace) -> _RoundTrees:
        """Raises :class:`TraceFormatError` when a node's parent lies outside its round."""
        count = trace.node_count.long()
        first = count.cumsum(0) - count
        round_of = torch.repeat_interleave(torch.arange(count.numel()), count)
        parent_in_round = trace.node_parent.long()
        if bool((parent_in_round >= count[round_of]).any()):
            raise TraceFormatError("a node's parent lies outside its round")
        return cls(
            node_count=count,
            round_of=round_of,
            is_root=torch.arange(round_of.numel()) == first[round_of],
            has_parent=parent_in_round >= 0,
            parent=(first[round_of] + parent_in_round).clamp(min=0),
            root_position=trace.root.long()[round_of],
        )

    def depths(self, accepted: Tensor) -> tuple[Tensor, Tensor]:
        """The depth of every node ``[M]``, and the depth of the last accepted node on the path to the node ``[M]``.

        The path includes the node itself. Both are -1 where no link reaches the node. ``accepted`` is ``[M]`` bool.
        """
        depth = torch.where(self.is_root, 0, -1)
        accepted_depth = torch.where(self.is_root, 0, -1)
        for d in range(1, MAX_STEPS + 1):
            reached = self.has_parent & ~self.is_root & (depth < 0) & (depth[self.parent] == d - 1)
            if not bool(reached.any()):
                break
            inherited = torch.where(accepted, d, accepted_depth[self.parent])
            accepted_depth = torch.where(reached, inherited, accepted_depth)
            depth = torch.where(reached, d, depth)
        return depth, accepted_depth

    def shallowest(self, nodes: Tensor, depth: Tensor) -> Tensor:
        """``nodes`` ``[X]`` sorted by round and depth, at most :data:`MAX_REJECTED_PER_ROUND` of each round."""
        nodes = nodes[torch.argsort(self.round_of[nodes] * (MAX_STEPS + 1) + depth[nodes], stable=True)]
        rounds = self.round_of[nodes]
        per_round = torch.bincount(rounds, minlength=self.node_count.numel())
        rank = torch.arange(nodes.numel()) - (per_round.cumsum(0) - per_round)[rounds]
        return nodes[rank < MAX_REJECTED_PER_ROUND]


def rejected_nodes_of(trace: RequestTrace, vocab_size: int, start: int) -> RejectedNodes:
    """The nodes of ``trace`` that the draft proposed and the target rejected, with slots relative to ``start``.

    Nodes below the answer's last token are left out, because no token follows there. Raises :class:`TraceFormatError`
    for token ids outside the target's vocabulary and for parents outside their round.
    """
    trees = _RoundTrees.of(trace)
    drafted = trace.node_token
    if drafted.numel() and not 0 <= int(drafted.min()) <= int(drafted.max()) < vocab_size:
        raise TraceFormatError("drafted ids outside the target's vocabulary")
    depth, accepted_depth = trees.depths(trace.node_accepted)
    slot = trees.root_position - 1 - start
    inside_answer = trees.root_position + accepted_depth < trace.tokens.shape[0] - 1
    rejected = trace.drafted[trees.round_of] & ~trace.node_accepted & (depth > 0)
    nodes = (rejected & inside_answer & (slot >= 0)).nonzero().flatten()
    nodes = trees.shallowest(nodes, depth)
    index = torch.full((len(drafted),), -1, dtype=torch.int32)
    index[nodes] = torch.arange(nodes.numel(), dtype=torch.int32)
    return RejectedNodes(
        slot=slot[nodes].to(torch.int32),
        depth=depth[nodes].to(torch.int8),
        parent=index[trees.parent[nodes]],
        token=drafted[nodes],
        targets=captured_at(trace, nodes, vocab_size),
    )
