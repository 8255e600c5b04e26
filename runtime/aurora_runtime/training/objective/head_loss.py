"""Loss of the draft's head without keeping logits: the step's largest matrix products, each done once.

The head (``[V, H]``) outweighs the rest of an EAGLE-3 draft. Autograd would keep ``[N, V]`` logits, probabilities and
their gradients in float32. Here rows are processed in chunks, and the gradients of the hidden states and of the head
are formed during the forward pass. Invariant: the gradients equal autograd's up to the rounding of the compute dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aurora_runtime.training.objective.position_losses import Loss
from aurora_runtime.training.objective.target_distribution import TargetDistribution

ROWS_PER_CHUNK = 1024
"""1024 x 16384 probabilities in float32 are 64 MB."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        matrix: Tensor,
        loss: Loss,
        target: TargetDistribution,
        weight: Tensor,
    ) -> Tensor:
        rows = hidden.detach().to(matrix.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(rows)
        head_grad = torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, rows.shape[0], ROWS_PER_CHUNK):
            chunk = slice(start, start + ROWS_PER_CHUNK)
            with torch.enable_grad():
                logits = (rows[chunk] @ matrix.T).requires_grad_()
                value = (loss(logits, target[chunk]) * weight[chunk]).sum()
                (grad,) = torch.autograd.grad(value, logits)
            total += value.detach()
            hidden_grad[chunk] = grad @ matrix
            head_grad += grad.T @ rows[chunk]
        ctx.save_for_backward(hidden_grad, head_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *output_grads: Any) -> tuple[Tensor | None, ...]:
        hidden_grad, head_grad = ctx.saved_tensors
        return hidden_grad.float() * output_grads[0], head_grad * output_grads[0], None, None, None, None


def head_loss(
    hidden: Tensor, head: Tensor, matrix: Tensor, loss: Loss, target: TargetDistribution, weight: Tensor
) -> Tensor:
    """``sum_n weight[n] * loss(hidden @ head.T, target)[n]``, a scalar in float32.

    Shapes: hidden ``[N, H]``, head ``[V, H]``, weight ``[N]``. ``matrix`` is the head in the dtype of the matrix
    products, without gradient. The loss is in float32.
    """
    result: Tensor = _HeadLoss.apply(hidden, head, matrix, loss, target, weight)
    return result
