"""Collates examples into one padded batch: the trees that the draft is unrolled over, and each node's distribution.

Here the target's token ids become the draft's. Captured tokens outside the vocabulary map get the id -1, and their
probability becomes 0.

Nodes of one depth are ordered: first one path node per root, at that root's index, then rejected nodes.

Which nodes are trained is known here, on the host. So a batch names them by index. A mask would make the host wait for
a GPU to count the nodes.

Why the trainer collates in its loop and not in a thread: a GPU still updates the weights of the last step meanwhile,
because neither :meth:`Batch.to` nor the forward pass waits for the GPU (docs/how-to/sizing.md has the arithmetic). A
batch made in advance would also be drawn in advance, so that a saved state would no longer decide the next batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from aurora_runtime.packed_states import PACKED_TYPE, SCALE_TYPE, unpacked
from aurora_runtime.pinned_copy import copy_to_device
from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.data.kept_states import KeptStates
from aurora_runtime.training.model.unroll import Level, Trunk
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.objective.target_distribution import TargetDistribution


@dataclass(frozen=True)
class Batch:
    """``R`` roots in each of ``B`` examples, unrolled to ``J`` depths of ``N[d]`` nodes (``N[0]`` is ``R``)."""

    trunk: Trunk
    levels: tuple[Level, ...]  # J - 1, from depth 1
    trained_node: Tensor  # [P] int64: nodes with a target, among the nodes of all depths, ``[B, N[d]]`` each
    trained_row: Tensor  # [P] int64: their rows in targets
    trained_counts: tuple[int, ...]  # 2J: how many of the P are path nodes and rejected nodes, depth by depth
    root_count: int  # R
    targets: TargetDistribution  # M rows
    weight: Tensor  # [M] float32
    positions: int  # slots without padding

    def to(self, device: torch.device) -> Batch:
        """This batch on ``device``. The host does not wait for a GPU to copy it."""

        def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: copy_to_device(tensor, device) for name, tensor in tensors.items()}

        if device.type == "cpu":
            return self
        return Batch(
            trunk=Trunk(**copied(vars(self.trunk))),
            levels=tuple(Level(**copied(vars(level))) for level in self.levels),
            trained_node=copy_to_device(self.trained_node, device),
            trained_row=copy_to_device(self.trained_row, device),
            trained_counts=self.trained_counts,
            root_count=self.root_count,
            targets=TargetDistribution(**copied(vars(self.targets))),
            weight=copy_to_device(self.weight, device),
            positions=self.positions,
        )


def collate(
    examples: Sequence[Example],
    steps: int,
    vocabulary: VocabularyMap,
    *,
    with_rejected: bool = False,
) -> Batch:
    """Pad ``examples`` into one batch of ``steps`` depths, optionally with the rejected nodes.

    The draft is unrolled from every root, along the committed tokens, as if all of them had been accepted.
    """
    root_count = max(example.root_count for example in examples)
    trees = [_ExampleTrees(e, _rejected_levels(e, root_count, steps if with_rejected else 1)) for e in examples]
    padded = _PaddedBatch(trees, root_count, steps)
    first_row = 0
    for index, each in enumerate(trees):
        padded.put(index, each, first_row)
        first_row += each.target_row_count
    trained_node, trained_row, trained_counts = padded.trained()
    return Batch(
        trunk=Trunk(
            aux=padded.aux,
            aux_scale=padded.aux_scale,
            tokens=padded.next_token,
            start=torch.tensor([e.start for e in examples]),
            root_slot=padded.root_slot,
        ),
        levels=tuple(Level(token, parent) for token, parent in zip(padded.token, padded.parent, strict=True)),
        trained_node=trained_node,
        trained_row=trained_row,
        trained_counts=trained_counts,
        root_count=root_count,
        targets=_draft_distributions(examples, vocabulary),
        weight=torch.cat([part for e in examples for part in (e.known.float(), torch.ones(len(e.rejected)))]),
        positions=sum(e.slots for e in examples),
    )


@dataclass(frozen=True)
class _RejectedLevel:
    """The ``x`` rejected nodes of one example at one depth."""

    node: Tensor  # [x] index among the example's rejected nodes
    token: Tensor  # [x]
    parent: Tensor  # [x] index among the batch's nodes of the depth before


def _rejected_levels(example: Example, root_count: int, depths: int) -> list[_RejectedLevel]:
    """The example's rejected nodes at depths 1 to ``depths - 1``, in a batch of ``root_count`` roots."""
    rejected = example.rejected
    node_index = torch.zeros(len(rejected), dtype=torch.int64)
    levels = []
    for depth in range(1, depths):
        node = (rejected.depth == depth).nonzero().flatten()
        node_index[node] = root_count + torch.arange(node.numel())
        above = rejected.parent[node].long()
        root = rejected.slot[node].long() - example.first_root
        parent = torch.where(above >= 0, node_index[above.clamp(min=0)], root)
        levels.append(_RejectedLevel(node, rejected.token[node].long(), parent))
    return levels


@dataclass(frozen=True)
class _ExampleTrees:
    """The trees of one example: paths below its ``n`` roots, and rejected nodes beside them."""

    example: Example
    rejected: list[_RejectedLevel]  # from depth 1; empty when rejected nodes are left out

    @property
    def root_slots(self) -> Tensor:
        """The slots ``[n]`` of the roots."""
        return self.example.first_root + torch.arange(self.example.root_count)

    @property
    def target_row_count(self) -> int:
        """Rows of the example in the batch's targets: its positions, then its rejected nodes."""
        return self.example.slots + 1 + len(self.example.rejected)

    def path_target_rows(self, depth: int) -> Tensor:
        """The example's target row of each path node at ``depth`` ``[n]``, -1 where there is none."""
        e = self.example
        position = self.root_slots + 1 + depth
        present = (position <= e.slots) & e.known[position.clamp(max=e.slots)]
        return torch.where(present, position, -1)

    def path_tokens(self, depth: int) -> Tensor:
        """The token of each path node at ``depth`` ``[n]`` int64."""
        return self.example.tokens[(self.root_slots + 1 + depth).clamp(max=self.example.slots)].long()

    def rejected_count(self, depth: int) -> int:
        return self.rejected[depth - 1].node.numel() if depth and self.rejected else 0


class _PaddedBatch:
    """The tensors of a batch, filled one example at a time."""

    def __init__(self, trees: Sequence[_ExampleTrees], root_count: int, steps: int) -> None:
        examples = [each.example for each in trees]
        b, slots, width = len(trees), max(e.slots for e in examples), examples[0].aux.blocks[0].states.shape[1]
        node_counts = [root_count + max(each.rejected_count(depth) for each in trees) for depth in range(steps)]
        # Packed states stay packed until they are on the device, unless states that are not packed stand beside them.
        # Examples of targets in fp16 and in bf16 may meet as well: a type that holds the numbers of both.
        dtypes = {block.states.dtype for e in examples for block in e.aux.blocks}
        if dtypes != {PACKED_TYPE}:
            dtypes = {torch.bfloat16 if dtype == PACKED_TYPE else dtype for dtype in dtypes}
        self.aux = torch.zeros(b, slots, width, dtype=reduce(torch.promote_types, dtypes))  # [B, T, 3H]
        self.aux_scale = torch.ones(b, slots, dtype=SCALE_TYPE)  # [B, T]
        self.next_token = torch.zeros(b, slots, dtype=torch.int64)  # [B, T]
        self.root_slot = torch.zeros(b, root_count, dtype=torch.int64)  # [B, R]
        # J x [B, N[d]]: the node's row in the batch's targets, -1 where it has none
        self.target_rows = [torch.full((b, n), -1, dtype=torch.int64) for n in node_counts]
        self.token = [torch.zeros(b, n, dtype=torch.int64) for n in node_counts[1:]]  # J - 1
        self.parent = [torch.zeros(b, n, dtype=torch.int64) for n in node_counts[1:]]  # J - 1

    def put(self, index: int, trees: _ExampleTrees, first_row: int) -> None:
        """Fill row ``index`` of every tensor; the example's targets start at ``first_row``."""
        e, n = trees.example, trees.example.root_count
        self._put_states(index, e.aux)
        self.next_token[index, : e.slots] = e.tokens[1:]
        self.root_slot[index, :n] = trees.root_slots
        for depth, target_rows in enumerate(self.target_rows):
            rows = trees.path_target_rows(depth)
            target_rows[index, :n] = torch.where(rows >= 0, first_row + rows, -1)
            if depth:
                self.token[depth - 1][index, :n] = trees.path_tokens(depth)
                self.parent[depth - 1][index, :n] = torch.arange(n)
        for depth, level in enumerate(trees.rejected, start=1):
            self._put_rejected(index, depth, level, first_row + e.slots + 1)

    def _put_states(self, index: int, states: KeptStates) -> None:
        first = 0
        for block in states.blocks:
            span = slice(first, first + len(block))
            if self.aux.dtype == PACKED_TYPE:
                self.aux[index, span], self.aux_scale[index, span] = block.states, block.scale
            else:
                self.aux[index, span] = unpacked(block.states, block.scale)
            first = span.stop

    def _put_rejected(self, index: int, depth: int, level: _RejectedLevel, first_row: int) -> None:
        """Put rejected nodes after the path nodes. The targets of rejected nodes start at ``first_row``."""
        root_count = self.root_slot.shape[1]
        span = slice(root_count, root_count + level.node.numel())
        self.token[depth - 1][index, span] = level.token
        self.parent[depth - 1][index, span] = level.parent
        self.target_rows[depth][index, span] = first_row + level.node

    def trained(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """:attr:`Batch.trained_node`, :attr:`Batch.trained_row` and :attr:`Batch.trained_counts`."""
        nodes, rows, first_node = list[Tensor](), list[Tensor](), 0
        for target_rows in self.target_rows:
            node = first_node + torch.arange(target_rows.numel()).view_as(target_rows)
            for part in (slice(self.root_slot.shape[1]), slice(self.root_slot.shape[1], None)):
                present = target_rows[:, part] >= 0
                nodes.append(node[:, part][present])
                rows.append(target_rows[:, part][present])
            first_node += target_rows.numel()
        return torch.cat(nodes), torch.cat(rows), tuple(part.numel() for part in rows)


def _draft_distributions(examples: Sequence[Example], vocabulary: VocabularyMap) -> TargetDistribution:
    """The distributions ``[M, K]`` of all ``examples``. Each example gives its positions, then its rejected nodes.

    ``K`` is the largest of the examples. Shards with fewer tokens a node are padded with ids of -1.
    """
    captured = [part for e in examples for part in (e.targets, e.rejected.targets)]
    k = max(part.target_ids.shape[-1] for part in captured)
    ids = torch.cat([F.pad(p.target_ids, (0, k - p.target_ids.shape[-1]), value=-1) for p in captured])
    probs = torch.cat([F.pad(p.target_probs, (0, k - p.target_probs.shape[-1])) for p in captured])
    ids = vocabulary.to_draft_ids(ids)
    uncaptured = torch.cat([part.uncaptured_mass for part in captured]).float()
    return TargetDistribution(ids, probs.float().masked_fill(ids < 0, 0.0), uncaptured)
