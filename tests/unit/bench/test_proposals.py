"""Proposed trees hold the likeliest nodes, proposed chains are greedy, and simulated rounds accept a path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import Level, Trunk, unroll
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from tests.assets.traces.drafted import CHAINS, DRAFT_SHAPES, TREES, rounds_of
from tests.assets.traces.proposals import Tree, propose
from tests.unit.training import tiny

DraftAndTrace = tuple[DraftModel, VocabularyMap, RequestTrace]


@pytest.fixture(scope="module")
def draft_and_trace(tmp_path_factory: pytest.TempPathFactory) -> DraftAndTrace:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path_factory.mktemp("target")))
    with torch.no_grad():
        draft.lm_head.weight.mul_(20)  # so that likelihoods differ clearly
    return draft, vocabulary, tiny.trace(3, prompt=5, answer=12)


@torch.no_grad()
def likelihoods(draft_and_trace: DraftAndTrace, at: int, path: Sequence[int]) -> Tensor:
    """The draft's likelihoods ``[draft_vocab]`` after answer token ``at`` and the proposed tokens ``path``."""
    draft, _, trace = draft_and_trace
    slots = trace.tokens.shape[0] - 1
    trunk = Trunk(
        aux=trace.hidden[None, :slots],
        tokens=trace.tokens[None, 1:].long(),
        start=torch.zeros(1, dtype=torch.int64),
        root_slot=torch.tensor([[trace.prompt_length - 1 + at]]),
    )
    levels = [Level(torch.tensor([[token]]), torch.tensor([[0]])) for token in path]
    return draft.logits(unroll(draft, trunk, levels)[-1])[0, 0].float().softmax(-1)


def expected_nodes(draft_and_trace: DraftAndTrace, at: int, spec: DraftSpec) -> dict[tuple[int, ...], float]:
    """The likelihood of each node of the tree by its path, computed as SGLang does, one node at a time."""
    _, vocabulary, _ = draft_and_trace
    candidates = dict[tuple[int, ...], float]()
    beam: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(spec.steps):
        offered = dict[tuple[int, ...], float]()
        for path, likely in beam.items():
            top = likelihoods(draft_and_trace, at, path).topk(spec.branching)
            for value, token in zip(top.values.tolist(), vocabulary.to_target[top.indices].tolist(), strict=True):
                offered[(*path, token)] = likely * value
        candidates |= offered
        beam = dict(sorted(offered.items(), key=lambda item: -item[1])[: spec.branching])
    return dict(sorted(candidates.items(), key=lambda item: -item[1])[: spec.tokens_per_round - 1])


def paths(tree: Tree) -> list[tuple[int, ...]]:
    """The path of tokens to each node. Fails unless parents come before children."""
    paths_by_node: list[tuple[int, ...]] = [()]
    for token, parent in itertools.islice(zip(tree.tokens, tree.parents, strict=True), 1, None):
        paths_by_node.append((*paths_by_node[parent], token))
    return paths_by_node


@pytest.mark.parametrize("shape", [CHAINS, TREES])
def test_a_tree_holds_the_likeliest_nodes(draft_and_trace: DraftAndTrace, shape: str) -> None:
    trace, spec = draft_and_trace[2], DRAFT_SHAPES[shape]
    trees = propose(*draft_and_trace, spec)
    assert len(trees) == trace.answer_tokens - 1
    for at, tree in enumerate(trees):
        assert tree.tokens[0] == int(trace.tokens[trace.prompt_length + at])
        assert tree.parents[0] == -1
        assert len(tree.tokens) == spec.tokens_per_round
        assert {*paths(tree)[1:]} == expected_nodes(draft_and_trace, at, spec).keys()
    if shape == TREES:
        assert len({tree.parents for tree in trees}) > 1


def test_accepted_nodes_are_a_path_of_committed_tokens(draft_and_trace: DraftAndTrace) -> None:
    trace = draft_and_trace[2]
    tokens = trace.tokens.tolist()
    trees = propose(*draft_and_trace, DRAFT_SHAPES[TREES])
    for at, tree in enumerate(trees):  # make one node at depth 1 and one below it right
        below = [n for n, parent in enumerate(tree.parents) if tree.parents[parent] == 0 and n > 0 and parent > 0]
        if at % 2 or not below:
            continue
        node, changed = below[-1], [*tree.tokens]
        ahead = tokens[trace.prompt_length + at + 1 :]
        for place, token in zip((tree.parents[node], node), ahead, strict=False):
            changed[place] = token
        trees[at] = Tree(tuple(changed), tree.parents)
    rounds = rounds_of(trace, trees)
    assert sum(1 + r.accepted for r in rounds) >= trace.answer_tokens - 1
    assert max(r.accepted for r in rounds) >= 2
    at = trace.prompt_length
    for r in rounds:
        assert r.root == at
        assert r.path[0] == 0
        for depth, (parent, node) in enumerate(itertools.pairwise(r.path), 1):
            assert r.tree.parents[node] == parent
            assert r.tree.tokens[node] == tokens[r.root + depth]
        at += r.accepted + 1
    assert at >= len(tokens) - 1
