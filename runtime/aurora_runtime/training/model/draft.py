"""The EAGLE-3 draft as SGLang runs it: one decoder layer over (token embedding, hidden state), its own head.

Invariant: the forward equals sglang/srt/models/llama_eagle3.py (0.5.23) up to rounding, and the parameters carry the
checkpoint's names. Slot ``t`` holds the embedding of token ``t+1`` and the target's state at ``t`` (rope position
``t``), and proposes token ``t+2``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.training.model.rope import Rope


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class _Attention(nn.Module):
    def __init__(self, c: DraftConfig) -> None:
        super().__init__()
        self.q_proj = nn.Linear(2 * c.hidden_size, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * c.hidden_size, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden_size, bias=False)


class _MLP(nn.Module):
    def __init__(self, c: DraftConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class _Layer(nn.Module):
    def __init__(self, c: DraftConfig) -> None:
        super().__init__()
        self.hidden_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = _Attention(c)
        self.mlp = _MLP(c)


class DraftModel(nn.Module):
    """The trainable draft with float32 master weights; callers choose the compute dtype by autocast.

    ``embedding`` ``[vocab, H]`` is the target's. It is not trained and not part of the state dict.
    """

    embedding: Tensor
    rope_frequencies: Tensor

    def __init__(self, config: DraftConfig, embedding: Tensor) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.aux_layers) * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = _Layer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.register_buffer("embedding", embedding, persistent=False)
        rope = Rope.of(config)
        self.register_buffer("rope_frequencies", rope.frequencies, persistent=False)
        self._rope_stretch = rope.stretch

    def fuse(self, aux: Tensor) -> Tensor:
        """Reduce the target's auxiliary states ``[..., 3H]`` to one hidden state ``[..., H]``."""
        fused: Tensor = self.fc(aux.to(self.fc.weight.dtype))
        return fused

    def inputs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The attention's inputs ``[..., 2H]`` from hidden states ``[..., H]`` and token ids ``[...]``."""
        embedded = functional.embedding(tokens, self.embedding)
        return torch.cat([self.midlayer.input_layernorm(embedded), self.midlayer.hidden_norm(hidden)], dim=-1)

    def queries(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """``[B, R, 2H] -> [B, heads, R, D]``, rotated."""
        return self._rotated(self.midlayer.self_attn.q_proj(inputs), positions)

    def keys(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """``[B, R, 2H] -> [B, kv_heads, R, D]``, rotated."""
        return self._rotated(self.midlayer.self_attn.k_proj(inputs), positions)

    def values(self, inputs: Tensor) -> Tensor:
        """``[B, R, 2H] -> [B, kv_heads, R, D]``."""
        return self._split(self.midlayer.self_attn.v_proj(inputs))

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The layer's output ``[B, R, H]`` before the last norm, which the next draft step reads.

        ``hidden`` ``[B, R, H]`` is the layer's input, ``attended`` ``[B, heads, R, D]`` the attention's output.
        """
        flat = attended.transpose(1, 2).flatten(2)
        residual = hidden.float() + self.midlayer.self_attn.o_proj(flat)
        out: Tensor = residual + self.midlayer.mlp(self.midlayer.post_attention_layernorm(residual))
        return out

    def logits(self, out: Tensor) -> Tensor:
        """``[..., H] -> [..., draft_vocab]``."""
        scores: Tensor = self.lm_head(self.norm(out))
        return scores

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.config.head_dim).transpose(1, 2)

    def _rotated(self, x: Tensor, positions: Tensor) -> Tensor:
        half = self.config.rotary_dim // 2
        angle = positions[:, None, :, None].float() * self.rope_frequencies
        cos, sin = angle.cos() * self._rope_stretch, angle.sin() * self._rope_stretch
        heads = self._split(x).float()
        low, high, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
        return torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=-1)
