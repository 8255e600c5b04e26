"""Compares the draft tree functions with walks over explicit node lists."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
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


@settings(max_examples=example_count(20), deadline=None)
@given(st.integers(1, 3), st.integers(2, 8))
def test_the_drafts_tokens_are_linked_to_a_chain(batch: int, nodes: int) -> None:
    forest = [Tree([max(0, node - 1) for node in range(nodes)])] * batch
    lengths = torch.arange(1, batch + 1)
    mask = torch.ones(batch * nodes * nodes, dtype=torch.bool)
    positions = torch.zeros(batch * nodes, dtype=torch.long)
    index, child, sibling = (torch.full((batch, nodes), -7) for _ in range(3))
    choice = torch.empty(batch, 0, dtype=torch.long), torch.zeros(batch, nodes - 1, dtype=torch.long)
    links = mask, positions, index, child, sibling
    draft_trees.build_tree_kernel_efficient_cpu(*choice, lengths, *links, 1, nodes - 1, nodes, 1)
    expected_child, expected_sibling = links_of(forest)
    assert torch.equal(child, expected_child)
    assert torch.equal(sibling, expected_sibling)
    assert index.flatten().tolist() == list(range(batch * nodes))
    assert positions.tolist() == [int(length) + node for length in lengths for node in range(nodes)]
    assert torch.equal(mask.view(batch, nodes, nodes), torch.stack([tree.mask() for tree in forest]))
    with pytest.raises(NotImplementedError, match="eagle-topk 1"):
        draft_trees.build_tree_kernel_efficient_cpu(*choice, lengths, *links, 2, nodes - 1, nodes, 1)


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
