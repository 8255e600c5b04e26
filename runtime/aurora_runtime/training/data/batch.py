"""Examples as one padded batch of trees: what the draft is unrolled along, and who teaches which node.

Here the target's ids become the draft's: what the vocabulary map does not hold is told apart from what nobody knows.

Nodes of one depth are ordered: first the path that each root follows, at the root's own index, then rejected branches.
So ``outputs[depth][:, :roots]`` are the outputs along the paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from aurora_runtime.training.data.examples import Example
from aurora_runtime.training.model.unroll import Level, Trunk
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.objective.target_distribution import TargetDistribution


class Follow(StrEnum):
    """Where the draft is unrolled, and along what."""

    COMMITTED = "committed"  # from every root, along the tokens that were committed: as if all of them were accepted
    PROPOSED = "proposed"  # from the roots where serving drafted, along what was accepted of the proposal


@dataclass(frozen=True)
class Batch:
    """``R`` roots in each of ``B`` examples, unrolled to ``J`` depths of ``N[d]`` nodes (``N[0]`` is ``R``)."""

    trunk: Trunk
    levels: tuple[Level, ...]  # J - 1, from depth 1
    rows: tuple[Tensor, ...]  # J x [B, N[d]] int64: row of the node's teacher, -1 where there is none
    roots: int
    teacher: TargetDistribution  # M rows
    weight: Tensor  # [M] float32
    expected: Tensor  # [B, R, J] int64: draft id of the token that followed; -1 unknown, -2 outside the vocabulary
    positions: int  # slots without padding

    def to(self, device: torch.device) -> Batch:
        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        if device.type == "cpu":
            return self
        return Batch(
            trunk=Trunk(**moved(vars(self.trunk))),
            levels=tuple(Level(**moved(vars(level))) for level in self.levels),
            rows=tuple(row.to(device, non_blocking=True) for row in self.rows),
            roots=self.roots,
            teacher=TargetDistribution(**moved(vars(self.teacher))),
            weight=self.weight.to(device, non_blocking=True),
            expected=self.expected.to(device, non_blocking=True),
            positions=self.positions,
        )


def collate(
    examples: Sequence[Example],
    steps: int,
    vocabulary: VocabularyMap,
    follow: Follow = Follow.COMMITTED,
    *,
    branches: bool = False,
) -> Batch:
    """Pad ``examples`` into one batch of ``steps`` depths, with the rejected ``branches`` if asked for."""
    b, slots, width = len(examples), max(e.slots for e in examples), examples[0].aux.shape[1]
    followed = [_followed(e, follow) for e in examples]
    roots = max(1, *(f.numel() for f in followed))
    hung = [_depths(e, f, steps, roots, branches) for e, f in zip(examples, followed, strict=True)]
    widths = [roots] + [roots + max(h[d].token.numel() for h in hung) for d in range(steps - 1)]
    aux = torch.zeros(b, slots, width, dtype=examples[0].aux.dtype)
    after = torch.zeros(b, slots, dtype=torch.int64)
    root = torch.zeros(b, roots, dtype=torch.int64)
    rows = [torch.full((b, n), -1, dtype=torch.int64) for n in widths]
    token = [torch.zeros(b, n, dtype=torch.int64) for n in widths[1:]]
    parent = [torch.zeros(b, n, dtype=torch.int64) for n in widths[1:]]
    expected = torch.full((b, roots, steps), -1, dtype=torch.int64)
    base = 0
    for i, e in enumerate(examples):
        aux[i, : e.slots] = e.aux
        after[i, : e.slots] = e.tokens[1:]
        slot, n = e.first_root + followed[i], followed[i].numel()
        root[i, :n] = slot
        expected[i, :n] = _expected(e, slot, steps, vocabulary)
        for d in range(steps):
            at = slot + 1 + d  # position whose distribution teaches
            present = (at <= e.slots) & (e.weight[at.clamp(max=e.slots)] > 0)
            if follow is Follow.PROPOSED:
                present &= e.accepted[followed[i]] >= d
            rows[d][i, :n] = torch.where(present, base + at, -1)
            if d:
                token[d - 1][i, :n] = e.tokens[at.clamp(max=e.slots)].long()
                parent[d - 1][i, :n] = torch.arange(n)
                more = hung[i][d - 1]
                span = slice(roots, roots + more.token.numel())
                token[d - 1][i, span], parent[d - 1][i, span] = more.token, more.parent
                rows[d][i, span] = base + e.slots + 1 + more.node
        base += e.slots + 1 + len(e.branches)
    return Batch(
        trunk=Trunk(aux=aux, tokens=after, start=torch.tensor([e.start for e in examples]), root=root),
        levels=tuple(Level(t, p) for t, p in zip(token, parent, strict=True)),
        rows=tuple(rows),
        roots=roots,
        teacher=_teachers(examples, vocabulary),
        weight=torch.cat([part for e in examples for part in (e.weight.float(), torch.ones(len(e.branches)))]),
        expected=expected,
        positions=sum(e.slots for e in examples),
    )


def _followed(e: Example, follow: Follow) -> Tensor:
    """Roots that are unrolled, counted from the example's first one."""
    if follow is Follow.PROPOSED:
        return (e.accepted >= 0).nonzero().flatten()
    return torch.arange(e.roots)


@dataclass(frozen=True)
class _Hung:
    """Rejected nodes of one example at one depth."""

    node: Tensor  # index among the example's branches
    token: Tensor
    parent: Tensor  # index among the nodes of the depth before


def _depths(e: Example, followed: Tensor, steps: int, roots: int, branches: bool) -> list[_Hung]:
    """The example's branches at depths 1…``steps - 1``."""
    own = e.branches
    place = torch.zeros(e.slots, dtype=torch.int64)
    place[e.first_root + followed] = torch.arange(followed.numel())
    index = torch.zeros(len(own), dtype=torch.int64)
    found = []
    for depth in range(1, steps):
        node = (own.depth == depth).nonzero().flatten() if branches else index[:0]
        index[node] = roots + torch.arange(node.numel())
        up = own.parent[node].long()
        parent = torch.where(up >= 0, index[up.clamp(min=0)], place[own.slot[node].long()])
        found.append(_Hung(node, own.token[node].long(), parent))
    return found


def _expected(e: Example, slot: Tensor, steps: int, vocabulary: VocabularyMap) -> Tensor:
    at = slot[:, None] + 1 + torch.arange(steps)
    follows = vocabulary.drafted(e.tokens[(at + 1).clamp(max=e.slots)])
    return torch.where(at < e.slots, torch.where(follows < 0, -2, follows), -1)


def _teachers(examples: Sequence[Example], vocabulary: VocabularyMap) -> TargetDistribution:
    """All teachers, as wide as the widest: shards of another ``topTokens`` are filled up with ids of nothing."""
    parts = [part for e in examples for part in (e, e.branches)]
    width = max(part.teacher_ids.shape[-1] for part in parts)
    ids = torch.cat([F.pad(p.teacher_ids, (0, width - p.teacher_ids.shape[-1]), value=-1) for p in parts])
    probs = torch.cat([F.pad(p.teacher_probs, (0, width - p.teacher_probs.shape[-1])) for p in parts])
    ids = vocabulary.drafted(ids)
    return TargetDistribution(
        ids, probs.float().masked_fill(ids < 0, 0.0), torch.cat([part.teacher_rest for part in parts]).float()
    )
