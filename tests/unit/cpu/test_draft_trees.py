"""Compares the draft tree functions with walks over explicit node lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_runtime.cpu import draft_trees
from tests.example_count import example_count


@dataclass
class Tree:
    """A tree by the parents of its nodes: parents[i] < i for every node but the root."""

    parents: list[int]

    def depth(self, node: int) -> int:
        return 0 if node == 0 else 1 + self.depth(self.parents[node])

    def path(self, node: int) -> set[int]:
        return {node} if node == 0 else {node} | self.path(self.parents[node])

    def children(self, node: int) -> list[int]:
        return [child for child in range(1, len(self.parents)) if self.parents[child] == node]

    def mask(self) -> torch.Tensor:
        size = len(self.parents)
        return torch.tensor([[column in self.path(row) for column in range(size)] for row in range(size)])

    def links(self) -> tuple[list[int], list[int]]:
        child, sibling = [], []
        for node in range(len(self.parents)):
            kids = self.children(node)
            child.append(kids[0] if kids else -1)
            later = [] if node == 0 else [kid for kid in self.children(self.parents[node]) if kid > node]
            sibling.append(later[0] if later else -1)
        return child, sibling


@st.composite
def forests(draw: st.DrawFn) -> list[Tree]:
    """Trees of one size. A tree of one node is a root alone, as in a round without proposals."""
    size = draw(st.integers(1, 10))
    batch = draw(st.integers(1, 3))
    return [Tree([0] + [draw(st.integers(0, node - 1)) for node in range(1, size)]) for _ in range(batch)]


def links_of(forest: list[Tree]) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [tree.links() for tree in forest]
    return torch.tensor([pair[0] for pair in pairs]), torch.tensor([pair[1] for pair in pairs])


@settings(max_examples=example_count(60), deadline=None)
@given(forests(), st.integers(0, 50))
def test_a_tree_is_reconstructed_from_its_mask(forest: list[Tree], seed: int) -> None:
    batch, size = len(forest), len(forest[0].parents)
    lengths = torch.randint(1, 90, (batch,), generator=torch.Generator().manual_seed(seed))
    positions = torch.zeros(batch * size, dtype=torch.long)
    index, child, sibling = (torch.full((batch, size), -7) for _ in range(3))
    mask = torch.stack([tree.mask() for tree in forest]).flatten()
    draft_trees.reconstruct_indices_from_tree_mask(mask, lengths, positions, index, child, sibling, batch, size)
    expected_child, expected_sibling = links_of(forest)
    assert torch.equal(child, expected_child)
    assert torch.equal(sibling, expected_sibling)
    assert index.flatten().tolist() == list(range(batch * size))
    expected = [int(lengths[b]) + tree.depth(node) for b, tree in enumerate(forest) for node in range(size)]
    assert positions.tolist() == expected


def eagle_choice(seed: int, batch: int, topk: int, steps: int, nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random parents and selected candidates, as SGLang's draft makes them: the top scores along a beam of `topk`."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, topk, generator=random)
    all_scores, parents = [scores], [torch.arange(-1, topk).expand(batch, -1)]
    beam = torch.arange(topk).expand(batch, -1)
    for step in range(1, steps):
        expanded = (scores[:, :, None] * torch.rand(batch, topk, topk, generator=random)).flatten(1)
        all_scores.append(expanded)
        best = expanded.topk(topk, dim=-1)
        scores, beam = best.values, best.indices
        parents.append(beam + topk * topk * (step - 1) + topk)
    flat = torch.cat(all_scores, 1)
    selected = flat.topk(nodes - 1, dim=-1).indices.sort(-1).values
    kept = parents[:-1]
    return (torch.cat(kept, 1) if kept else torch.empty(batch, 0, dtype=torch.long)), selected


@settings(max_examples=example_count(60), deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(2, 8), st.booleans())
def test_a_tree_is_built_from_the_drafts_choices(
    seed: int, batch: int, topk: int, steps: int, wanted: int, full: bool
) -> None:
    nodes = min(wanted, 1 + topk + (steps - 1) * topk * topk)
    parent_list, selected = eagle_choice(seed, batch, topk, steps, nodes)
    forest = []
    for b in range(batch):
        parents = [0]
        for candidate in selected[b].tolist():
            group = candidate // topk
            hangs_on = int(parent_list[b, group]) if group > 0 else None
            parents.append(0 if hangs_on is None else 1 + selected[b].tolist().index(hangs_on))
        forest.append(Tree(parents))
    lengths = torch.randint(1, 20, (batch,), generator=torch.Generator().manual_seed(seed))
    cells = nodes * (nodes * batch + int(lengths.sum())) if full else batch * nodes * nodes
    mask = torch.ones(cells, dtype=torch.bool)
    positions = torch.zeros(batch * nodes, dtype=torch.long)
    index, child, sibling = (torch.full((batch, nodes), -1) for _ in range(3))
    mode = draft_trees.MaskMode.FULL if full else draft_trees.MaskMode.QUERIES_ONLY
    draft_trees.build_tree_kernel_efficient_cpu(
        parent_list, selected, lengths, mask, positions, index, child, sibling, topk, steps, nodes, int(mode)
    )
    expected_child, expected_sibling = links_of(forest)
    assert torch.equal(child, expected_child)
    assert torch.equal(sibling, expected_sibling)
    assert index.flatten().tolist() == list(range(batch * nodes))
    assert positions.tolist() == [
        int(lengths[b]) + tree.depth(node) for b, tree in enumerate(forest) for node in range(nodes)
    ]
    rows = []
    for b, tree in enumerate(forest):
        prefix = torch.ones(nodes, int(lengths[b]) if full else 0, dtype=torch.bool)
        rows.append(torch.cat((prefix, tree.mask()), 1).flatten())
    assert torch.equal(mask, torch.cat(rows))


def accepted_path(tree: Tree, tokens: list[int], target: list[int], max_nodes: int) -> list[int]:
    """The accepted nodes from the root on, at most `max_nodes` of them."""
    path = [0]
    while len(path) < max_nodes:
        matching = [kid for kid in tree.children(path[-1]) if tokens[kid] == target[path[-1]]]
        if not matching:
            break
        path.append(matching[0])
    return path


@settings(max_examples=example_count(150), deadline=None)
@given(forests(), st.integers(0, 2**31), st.integers(2, 6))
def test_verification_follows_the_targets_choices(forest: list[Tree], seed: int, depth: int) -> None:
    batch, size = len(forest), len(forest[0].parents)
    random = torch.Generator().manual_seed(seed)
    candidates = torch.randint(0, 3, (batch, size), generator=random)
    target = torch.randint(0, 3, (batch, size), generator=random)
    child, sibling = links_of(forest)
    index = torch.arange(batch * size).view(batch, size)
    predicts = torch.zeros(batch * size, dtype=torch.int32)
    accept_index = torch.full((batch, depth), -1, dtype=torch.int32)
    accepted = torch.empty(batch, dtype=torch.int32)
    draft_trees.verify_tree_greedy_cpu(
        predicts=predicts,
        accept_index=accept_index,
        accept_token_num=accepted,
        candidates=candidates,
        retrive_index=index,
        retrive_next_token=child,
        retrive_next_sibling=sibling,
        target_predict=target,
    )
    expected_predicts = [0] * (batch * size)
    for b, tree in enumerate(forest):
        path = accepted_path(tree, candidates[b].tolist(), target[b].tolist(), depth)
        padded = [b * size + node for node in path] + [-1] * (depth - len(path))
        assert accept_index[b].tolist() == padded
        assert int(accepted[b]) == len(path) - 1
        for node in path:
            expected_predicts[b * size + node] = int(target[b, node])
    assert predicts.tolist() == expected_predicts
