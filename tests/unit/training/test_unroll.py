"""Trained as served: the batched unroll equals decoding one token at a time with a key-value cache."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from aurora_runtime.training.draft import Draft
from aurora_runtime.training.examples import collate, examples_of
from aurora_runtime.training.unroll import unroll
from tests.unit.training import tiny

STEPS = 4


def rope(x: Tensor, position: int, theta: float) -> Tensor:
    """Neox-style rotation of ``[heads, D]`` by complex numbers: another spelling than the draft's."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[:, :half].double(), x[:, half:].double()) * torch.polar(torch.ones(half).double(), angle)
    return torch.cat([turned.real, turned.imag], dim=-1).float()


class Cache:
    """The draft decoded token by token, written from SGLang's llama_eagle3.py line by line."""

    def __init__(self, draft: Draft) -> None:
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


def randomised(draft: Draft) -> Draft:
    """Larger random weights, so that every path matters."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)
    return draft


@torch.no_grad()
def test_batched_unroll_equals_decoding_step_by_step(tmp_path: Path) -> None:
    model = tiny.target(tmp_path)
    draft, vocabulary = tiny.draft_of(model)
    randomised(draft)
    traces = [tiny.trace(1), tiny.trace(2, prompt=9, answer=7), tiny.trace(3, prompt=11, hidden_start=4)]
    examples = [e for t in traces for e in examples_of(t, vocabulary)]
    batch = collate(examples, STEPS, vocabulary)
    outputs = unroll(draft, batch.trunk)
    compared = 0
    for i, (trace, example) in enumerate(zip(traces, examples, strict=True)):
        for r in range(example.roots):
            root = example.first_root + r
            cache = Cache(draft)
            at = trace.hidden_start
            hidden = torch.zeros(0)
            for slot in range(root + 1):
                fused = draft.fc.weight @ trace.hidden[slot].float()
                hidden = cache.step(int(trace.tokens[at + slot + 1]), fused, at + slot)
            for step in range(STEPS):
                if step:
                    token = at + root + 1 + step
                    if token >= trace.tokens.shape[0]:
                        break
                    hidden = cache.step(int(trace.tokens[token]), hidden, at + root + step)
                torch.testing.assert_close(outputs[step][i, r], hidden, atol=2e-4, rtol=2e-4)
                compared += 1
    assert compared > 80


@torch.no_grad()
def test_padding_changes_nothing(tmp_path: Path) -> None:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    short, long = (examples_of(t, vocabulary)[0] for t in (tiny.trace(1), tiny.trace(2, prompt=30, answer=20)))
    alone = unroll(draft, collate([short], 3, vocabulary).trunk)
    padded = unroll(draft, collate([short, long], 3, vocabulary).trunk)
    for a, b in zip(alone, padded, strict=True):
        torch.testing.assert_close(a[0], b[0, : short.roots], atol=1e-5, rtol=1e-5)
