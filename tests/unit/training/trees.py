"""Traces whose rounds are trees."""

from __future__ import annotations

import torch

from aurora_runtime.held_out_split import prompt_hash
from aurora_runtime.traces import RequestTrace
from tests.assets.traces.sources import sources_without_controller
from tests.unit.training import tiny


def tree_trace(
    seed: int, *, prompt: int = 6, answer: int = 14, hidden_start: int = 0, nodes: int = 7, depth: int = 4
) -> RequestTrace:
    """A random request. Each round verifies a random tree of ``nodes`` nodes and accepts a random path of the tree."""
    g = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=g))

    length = prompt + answer
    tokens = torch.randint(0, tiny.VOCAB, (length,), generator=g).tolist()
    roots, accepted, parents, on_path, drafted = [], [], [], [], []
    at = prompt
    while at < length - 1:
        up, level = [-1], [0]
        while len(up) < nodes:
            parent = integer(0, len(up))
            if level[parent] < depth:
                up.append(parent)
                level.append(level[parent] + 1)
        path = [0]
        while len(path) <= min(integer(0, depth + 1), length - 2 - at):
            children = [i for i in range(nodes) if up[i] == path[-1]]
            if not children:
                break
            path.append(children[integer(0, len(children))])
        wrong = torch.randperm(tiny.VOCAB, generator=g).tolist()
        drafted += [tokens[at + path.index(i)] if i in path else wrong[i] for i in range(nodes)]
        roots.append(at)
        accepted.append(len(path) - 1)
        parents += up
        on_path += [i in path for i in range(nodes)]
        at += len(path)
    top = (torch.randn(len(drafted), tiny.VOCAB, generator=g) * 2).log_softmax(-1).topk(tiny.TOP_K)
    return RequestTrace(
        request=prompt_hash(tokens[:prompt]),
        prompt_length=prompt,
        hidden_start=hidden_start,
        tokens=torch.tensor(tokens, dtype=torch.int32),
        hidden=torch.randn(length - 1 - hidden_start, 3 * tiny.HIDDEN, generator=g).to(torch.bfloat16),
        root=torch.tensor(roots, dtype=torch.int32),
        node_count=torch.full((len(roots),), nodes, dtype=torch.int32),
        accepted=torch.tensor(accepted, dtype=torch.int32),
        version=torch.zeros(len(roots), dtype=torch.int32),
        source=sources_without_controller(torch.full((len(roots),), nodes)),
        node_token=torch.tensor(drafted, dtype=torch.int32),
        node_parent=torch.tensor(parents, dtype=torch.int16),
        node_accepted=torch.tensor(on_path, dtype=torch.bool),
        top_ids=top.indices.to(torch.int32),
        top_logprobs=top.values.to(torch.float16),
        uncaptured_mass=(1 - top.values.exp().sum(-1)).clamp(0, 1).to(torch.float16),
    )
