"""The draft unrolled over trees: all nodes of one depth at once, each on the draft's own state of its parent.

Invariant: the outputs equal those of decoding node by node, as SGLang does. The trunk is the sequence of committed
tokens, with the target's states. A root is a slot of the trunk; its output is the draft's first step there. A node at
depth ``d`` reads its own token and its parent's output, sits at rope position ``root + d``, and attends to the trunk up
to its root, to its ancestors and to itself. Where trees are chains this is EAGLE-3's training-time test (arXiv
2503.01840: causal plus own diagonal); where they branch it is SGLang's draft decoding.

Depths are computed one after another, because a state at depth ``d`` is made from one at ``d - 1``. Within a depth, all
nodes of all trees of all sequences are one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aurora_runtime.packed_states import unpacked
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.tree_attention import tree_attention


@dataclass(frozen=True)
class Trunk:
    """``B`` sequences padded to ``T`` slots, and ``R`` roots in each."""

    aux: Tensor  # [B, T, 3H]: the target's auxiliary states, packed or not
    aux_scale: Tensor  # [B, T]: the factor of each row of packed states
    tokens: Tensor  # [B, T] int64: token after the slot's position
    start: Tensor  # [B] int64: absolute position of slot 0
    root_slot: Tensor  # [B, R] int64: slot of each root (padding repeats slot 0)


@dataclass(frozen=True)
class Level:
    """The ``N`` nodes of one depth in each sequence."""

    token: Tensor  # [B, N] int64
    parent: Tensor  # [B, N] int64: index among the nodes of the depth before


class Unrolling:
    """One pass, extended depth by depth. ``outputs`` ``[B, N, H]`` of the last depth precede the final norm."""

    def __init__(self, draft: DraftModel, trunk: Trunk) -> None:
        self._draft, self._start = draft, trunk.start
        slots = torch.arange(trunk.tokens.shape[1], device=trunk.tokens.device)
        fused = draft.fuse(unpacked(trunk.aux, trunk.aux_scale))
        inputs = draft.inputs(fused, trunk.tokens)
        positions = trunk.start[:, None] + slots
        self._trunk = draft.keys(inputs, positions), draft.values(inputs)
        self._ancestors: list[tuple[Tensor, Tensor]] = []
        self._root_slot = trunk.root_slot
        queries = draft.queries(_gather_rows(inputs, trunk.root_slot), trunk.start[:, None] + trunk.root_slot)
        self.outputs = self._finish(_gather_rows(fused, trunk.root_slot).float(), queries)

    def descend(self, level: Level) -> Tensor:
        """The outputs ``[B, N, H]`` of ``level``, whose parents are the nodes of the last depth."""
        draft, parent = self._draft, level.parent
        hidden, self._root_slot = _gather_rows(self.outputs, parent), self._root_slot.gather(1, parent)
        positions = self._start[:, None] + self._root_slot + len(self._ancestors) + 1
        inputs = draft.inputs(hidden, level.token)
        above = [(_gather_nodes(k, parent), _gather_nodes(v, parent)) for k, v in self._ancestors]
        self._ancestors = [*above, (draft.keys(inputs, positions), draft.values(inputs))]
        self.outputs = self._finish(hidden, draft.queries(inputs, positions))
        return self.outputs

    def _finish(self, hidden: Tensor, queries: Tensor) -> Tensor:
        return self._draft.finish(hidden, tree_attention(queries, self._trunk, self._root_slot, self._ancestors))


def unroll(draft: DraftModel, trunk: Trunk, levels: Sequence[Level]) -> list[Tensor]:
    """The outputs ``[B, N, H]`` of the roots and of each level below them."""
    unrolling = Unrolling(draft, trunk)
    return [unrolling.outputs, *(unrolling.descend(level) for level in levels)]


def _gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """``[B, P, H] -> [B, N, H]`` by ``index`` ``[B, N]``."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[-1]))


def _gather_nodes(x: Tensor, index: Tensor) -> Tensor:
    """``[B, kv, P, D] -> [B, kv, N, D]`` by ``index`` ``[B, N]``."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
