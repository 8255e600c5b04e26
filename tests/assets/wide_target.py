"""SmolLM2 made wider: another hidden size, the same answers.

How a hyperparameter depends on the width of a target can be measured only on targets that differ in their width alone.
So hidden states are rotated into a larger space, and each weight that reads or writes them is rotated with them. The
norms' factors move into the weights behind them, because a rotation keeps the root mean square of a state and not its
elements. Attention heads and feed-forward units are added that read the states at random and write nothing.

Invariant: a wide target has the same next-token distributions as SmolLM2, up to rounding. Its states span as many
dimensions as SmolLM2's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.target.last_layer import INPUT_NORM, MIDDLE_NORM, CopiedLayer
from aurora_runtime.training.target.target_model import TargetModel

_READERS: Final = {
    "self_attn.q_proj.weight": INPUT_NORM,
    "self_attn.k_proj.weight": INPUT_NORM,
    "self_attn.v_proj.weight": INPUT_NORM,
    "mlp.gate_proj.weight": MIDDLE_NORM,
    "mlp.up_proj.weight": MIDDLE_NORM,
}
"""A weight that reads hidden states -> the norm before the weight."""
_WRITERS: Final = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
SEED: Final = 7


@dataclasses.dataclass(frozen=True)
class Widening:
    """A rotation of hidden states ``[..., h]`` into ``[..., H]``, where ``H`` is ``factor * h``."""

    rotation: Tensor  # [H, h]: orthogonal columns of length sqrt(factor), so that a state keeps its root mean square

    @classmethod
    def of(cls, hidden_size: int, factor: int) -> Widening:
        """A random rotation, the same at each call."""
        generator = torch.Generator().manual_seed(SEED)
        square = torch.randn(factor * hidden_size, hidden_size, generator=generator, dtype=torch.float64)
        return cls((torch.linalg.qr(square).Q * math.sqrt(factor)).float())

    @property
    def factor(self) -> int:
        return self.rotation.shape[0] // self.rotation.shape[1]

    def states(self, states: Tensor) -> Tensor:
        """Hidden states ``[..., n * h]``, side by side, become ``[..., n * H]``."""
        narrow = states.float().view(*states.shape[:-1], -1, self.rotation.shape[1])
        wide: Tensor = narrow @ self.rotation.T
        return wide.flatten(-2).to(states.dtype)

    def reader(self, weight: Tensor, norm: Tensor) -> Tensor:
        """A weight ``[rows, h]`` behind the norm with the factors ``norm`` ``[h]``, for wide states ``[rows, H]``."""
        return weight.float() * norm.float() @ self.rotation.T / self.factor

    def trace(self, trace: RequestTrace) -> RequestTrace:
        """``trace`` as the wide target would have written it."""
        return dataclasses.replace(trace, hidden=self.states(trace.hidden))


def widened(target: TargetModel, widening: Widening) -> TargetModel:
    """``target`` with hidden states of ``widening``, and as many times its heads and feed-forward units."""
    config, factor = target.config, widening.factor
    generator = torch.Generator().manual_seed(SEED)
    ones = torch.ones(widening.rotation.shape[0])
    layer = {INPUT_NORM: ones, MIDDLE_NORM: ones}
    narrow = target.last_layer.tensors
    for name, norm in _READERS.items():
        wide = widening.reader(narrow[name], narrow[norm])
        more = torch.randn((factor - 1) * wide.shape[0], wide.shape[1], generator=generator) * wide.std()
        layer[name] = torch.cat([wide, more])
    for name in _WRITERS:
        wide = widening.rotation @ narrow[name].float()
        layer[name] = torch.cat([wide, torch.zeros(wide.shape[0], (factor - 1) * wide.shape[1])], dim=1)
    return dataclasses.replace(
        target,
        identity=target.identity.model_copy(update={"hidden_size": factor * config.hidden_size}),
        config=dataclasses.replace(
            config,
            hidden_size=factor * config.hidden_size,
            intermediate_size=factor * config.intermediate_size,
            heads=factor * config.heads,
            kv_heads=factor * config.kv_heads,
        ),
        embedding=widening.states(target.embedding),
        head=widening.reader(target.head, target.norm).to(target.head.dtype),
        norm=ones,
        last_layer=CopiedLayer(layer, target.last_layer.attention, target.last_layer.feed_forward),
    )
