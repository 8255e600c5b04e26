"""Verify rounds simulated for tests are real ones: every node has the target's distribution after its prefix."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aurora_runtime.traces import RequestTrace
from tests.assets.traces import drafted
from tests.assets.traces.proposals import Tree
from tests.assets.traces.verify_nodes import nodes_of
from tests.unit.training import tiny

DEPTHS = 4


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=tiny.VOCAB, **sizes)).eval()


CHAIN = (-1, 0, 1, 2)
TREE = (-1, 0, 0, 0, 1, 2, 2, 5)
CORRECT_NODES = {0: (1, 2), 5: (1,), 9: (1, 2, 3)}, {0: (2, 5), 5: (3,), 9: (2, 5, 7)}
"""The correct nodes of each answer token's round, for the chain and for the tree."""


@pytest.mark.parametrize(
    ("parents", "correct"), [*zip((CHAIN, TREE), CORRECT_NODES, strict=True)], ids=["chain", "tree"]
)
@torch.no_grad()
def test_every_node_has_the_targets_distribution_after_its_prefix(
    model: Any, parents: tuple[int, ...], correct: dict[int, tuple[int, ...]]
) -> None:
    without_rounds = tiny.trace(1, prompt=5, answer=14, steps=0)
    answer, random = without_rounds.tokens[without_rounds.prompt_length :].tolist(), torch.Generator().manual_seed(2)
    trees = []
    for at in range(13):
        tokens = [answer[at], *torch.randperm(tiny.VOCAB, generator=random)[: len(parents) - 1].tolist()]
        for depth, place in enumerate(correct.get(at, ()), 1):
            tokens[place] = answer[at + depth]
        trees.append(Tree(tuple(tokens), parents))
    trace = drafted.with_verify_rounds(without_rounds, trees, model, version=7)
    assert trace.root.tolist() == [5, 8, 9, 10, 12, 13, 14]
    assert trace.accepted.tolist() == [2, 0, 0, 1, 0, 0, 3]
    assert set(trace.version.tolist()) == {7}
    seen = 0
    for node in nodes_of(trace, DEPTHS):
        prefix = torch.cat([trace.tokens[: node.slot + 2].long(), torch.tensor(node.path, dtype=torch.int64)])
        want = model(prefix[None]).logits[0, -1].log_softmax(-1)[trace.top_ids[node.index].long()]
        torch.testing.assert_close(trace.top_logprobs[node.index].float(), want, atol=2e-2, rtol=1e-3)
        seen += 1
    assert seen == trace.node_token.shape[0] == 7 * len(parents)
    check_accepted_nodes(trace)


def check_accepted_nodes(trace: RequestTrace) -> None:
    """Accepted nodes are the committed tokens."""
    for node in nodes_of(trace, DEPTHS):
        committed = trace.tokens[node.slot + 2 : node.slot + 2 + len(node.path)].tolist()
        assert (committed == list(node.path)) == node.accepted
