"""The draft unrolled over trees: all nodes of one depth at once, each on the draft's own state of its parent.

Invariant: the outputs equal those of decoding node by node, as SGLang does it. The trunk are the committed tokens, with
the target's states. A root is a slot of the trunk: its output is the draft's first step there. A node at depth ``d``
reads its own token and its parent's output, sits at rope position ``root + d``, and attends over the trunk up to its
root, its ancestors and itself. That is EAGLE-3's training-time test (arXiv 2503.01840: causal plus own diagonal) where
trees are chains, and SGLang's draft decoding where they branch.

Depths follow one another because a state at depth ``d`` is made from one at ``d - 1``; everything else, all nodes of
all trees of all sequences, is one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.tree_attention import tree_attention


@dataclass(frozen=True)
class Trunk:
    """``B`` sequences padded to ``T`` slots, and ``R`` roots in each."""

    aux: Tensor  # [B, T, 3H]: the target's auxiliary states
    tokens: Tensor  # [B, T] int64: token after the slot's position
    start: Tensor  # [B] int64: absolute position of slot 0
    root: Tensor  # [B, R] int64: slot of each root (padding repeats slot 0)


@dataclass(frozen=True)
class Level:
    """The ``N`` nodes of one depth in each sequence."""

    token: Tensor  # [B, N] int64
    parent: Tensor  # [B, N] int64: index among the nodes of the depth before


class Unrolling:
    """One pass, a depth at a time; ``outputs`` are the layer's, ``[B, N, H]`` before the last norm, of the newest."""

    def __init__(self, draft: DraftModel, trunk: Trunk) -> None:
        self._draft, self._start = draft, trunk.start
        slots = torch.arange(trunk.tokens.shape[1], device=trunk.tokens.device)
        fused = draft.fuse(trunk.aux)
        inputs = draft.inputs(fused, trunk.tokens)
        positions = trunk.start[:, None] + slots
        self._trunk = draft.keys(inputs, positions), draft.values(inputs)
        self._own: list[tuple[Tensor, Tensor]] = []
        self._root = trunk.root
        queries = draft.queries(_rows(inputs, trunk.root), trunk.start[:, None] + trunk.root)
        self.outputs = self._finish(_rows(fused, trunk.root).float(), queries)

    def descend(self, level: Level) -> Tensor:
        """The outputs ``[B, N, H]`` of ``level``, which hangs below the newest one."""
        draft, parent = self._draft, level.parent
        hidden, self._root = _rows(self.outputs, parent), self._root.gather(1, parent)
        positions = self._start[:, None] + self._root + len(self._own) + 1
        inputs = draft.inputs(hidden, level.token)
        above = [(_nodes(k, parent), _nodes(v, parent)) for k, v in self._own]
        self._own = [*above, (draft.keys(inputs, positions), draft.values(inputs))]
        self.outputs = self._finish(hidden, draft.queries(inputs, positions))
        return self.outputs

    def _finish(self, hidden: Tensor, queries: Tensor) -> Tensor:
        return self._draft.finish(hidden, tree_attention(queries, self._trunk, self._root, self._own))


def unroll(draft: DraftModel, trunk: Trunk, levels: Sequence[Level]) -> list[Tensor]:
    """The outputs ``[B, N, H]`` of the roots and of each level below them."""
    unrolling = Unrolling(draft, trunk)
    return [unrolling.outputs, *(unrolling.descend(level) for level in levels)]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[-1]))


def _nodes(x: Tensor, index: Tensor) -> Tensor:
    """``[B, kv, P, D] -> [B, kv, N, D]``."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
