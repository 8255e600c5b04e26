"""Trained as served: the batched pass equals decoding one token at a time with a key-value cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.batch import collate
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.model import tree_attention
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.tree_attention import MAX_SCORES_PER_CHUNK
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.optim.batch_loss import batch_loss
from aurora_runtime.training.optim.recipe import Recipe
from tests.assets.traces.verify_nodes import nodes_by_path, nodes_of
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

STEPS = 4


def rope(x: Tensor, position: int, theta: float) -> Tensor:
    """Neox-style rotation of ``[heads, D]`` by complex numbers, written differently from the draft's."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[:, :half].double(), x[:, half:].double()) * torch.polar(torch.ones(half).double(), angle)
    return torch.cat([turned.real, turned.imag], dim=-1).float()


class Cache:
    """The draft decoded token by token, written from SGLang's llama_eagle3.py line by line."""

    def __init__(self, draft: DraftModel) -> None:
        self.d = draft
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.d.config.rms_norm_eps) * weight

    def step(self, token: int, hidden: Tensor, position: int) -> Tensor:
        """One slot: writes its key and value, attends over all, returns the state before the last norm."""
        c, layer = self.d.config, self.d.midlayer
        embedded = self.d.embedding[token].float()
        x = torch.cat([self.norm(embedded, layer.input_layernorm.weight), self.norm(hidden, layer.hidden_norm.weight)])
        q = rope((layer.self_attn.q_proj.weight @ x).view(c.heads, c.head_dim), position, c.rope_theta)
        self.k.append(rope((layer.self_attn.k_proj.weight @ x).view(c.kv_heads, c.head_dim), position, c.rope_theta))
        self.v.append((layer.self_attn.v_proj.weight @ x).view(c.kv_heads, c.head_dim))
        heads = []
        for h in range(c.heads):
            kv = h * c.kv_heads // c.heads
            keys, values = torch.stack([k[kv] for k in self.k]), torch.stack([v[kv] for v in self.v])
            heads.append((keys @ q[h] / c.head_dim**0.5).softmax(-1) @ values)
        residual = hidden + layer.self_attn.o_proj.weight @ torch.cat(heads)
        x = self.norm(residual, layer.post_attention_layernorm.weight)
        gated = functional.silu(layer.mlp.gate_proj.weight @ x) * (layer.mlp.up_proj.weight @ x)
        return residual + layer.mlp.down_proj.weight @ gated


def randomised(draft: DraftModel) -> DraftModel:
    """Larger random weights, so that every path matters."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)
    return draft


def decoded(draft: DraftModel, trace: RequestTrace, slot: int, path: tuple[int, ...]) -> Tensor:
    """The draft's output at a node, from the trace's first state on, one token at a time."""
    cache, hidden = Cache(draft), torch.zeros(0)
    for at in range(trace.hidden_start, slot + 1):
        fused = draft.fc.weight @ trace.hidden[at - trace.hidden_start].float()
        hidden = cache.step(int(trace.tokens[at + 1]), fused, at)
    for depth, token in enumerate(path, start=1):
        hidden = cache.step(token, hidden, slot + depth)
    return hidden


@torch.no_grad()
@pytest.mark.parametrize("scores", [MAX_SCORES_PER_CHUNK, 50])  # in one chunk, and in chunks of about one node
def test_the_batched_pass_equals_decoding_node_by_node(
    tmp_path: Path, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each verify node above the leaves is unrolled once, and has its target distribution."""
    monkeypatch.setattr(tree_attention, "MAX_SCORES_PER_CHUNK", scores)
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    randomised(draft)
    traces = [
        tree_trace(1),
        tree_trace(2, prompt=9, answer=9, nodes=9),
        tree_trace(3, prompt=11, hidden_start=4),
        tiny.trace(4, steps=3),
    ]
    examples = [e for t in traces for e in examples_of(t, tiny.VOCAB)]
    batch = collate(examples, STEPS, vocabulary, with_rejected=True)
    outputs = unroll(draft, batch.trunk, batch.levels)
    for i, trace in enumerate(traces):
        unrolled = nodes_by_path(batch, outputs, i)
        nodes = list(nodes_of(trace, STEPS))
        assert {(n.slot, n.path) for n in nodes} <= {path for path, node in unrolled.items() if node.row >= 0}
        for node in nodes:
            batched = unrolled[node.slot, node.path]
            want = decoded(draft, trace, node.slot, node.path)
            torch.testing.assert_close(batched.output, want, atol=2e-4, rtol=2e-4)
            ids = vocabulary.to_draft[trace.top_ids[node.index].long()].long()
            assert batch.targets.ids[batched.row].tolist() == ids.tolist()
            assert float(batch.targets.uncaptured_mass[batched.row]) == float(trace.uncaptured_mass[node.index])


def test_gradients_do_not_depend_on_the_chunks_of_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    examples = [e for seed in range(3) for e in examples_of(tree_trace(seed), tiny.VOCAB)]
    batch = collate(examples, 3, vocabulary, with_rejected=True)
    found = []
    for scores in (MAX_SCORES_PER_CHUNK, 300):
        monkeypatch.setattr(tree_attention, "MAX_SCORES_PER_CHUNK", scores)
        loss = batch_loss(draft, batch, Recipe(discard=0.5))
        found.append(torch.autograd.grad(loss, list(draft.parameters())))
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(whole, cut, atol=1e-3, rtol=1e-3)  # products are in bf16
