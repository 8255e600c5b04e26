"""One pass over a parameter after its gradient: clip, AdamW, moving average and a copy in bf16.

Torch (``training/optim/weight_update.py``) reads and writes a parameter's tensors in passes of their own: to scale the
gradient, to step, to average, and to cast the weight for the next forward pass. That is 54 bytes a weight. This kernel
moves 38 (arithmetic). AdamW is that of Loshchilov and Hutter (arXiv 1711.05101), here without weight decay.

Invariant: a weight's step does not depend on whether it is averaged, bit for bit, because only one rank averages. So
the same machine code runs with and without an average.

Never run on a GPU: tests run the kernel in Triton's interpreter, and compile it for sm_80 and sm_90.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import triton
import triton.language as tl
from torch import Tensor

BLOCK_WEIGHTS = 1024
"""Weights that one program updates."""
_NORM_EPS: Final = tl.constexpr(1e-6)
"""What ``torch.nn.utils.clip_grad_norm_`` adds to the norm."""


@dataclass(frozen=True)
class AdamWStep:
    """The numbers of one optimizer step, the same for all parameters.

    Attributes:
        number: this step, counted from 1.
        average_weight: share of the new weight in the average.
    """

    number: int
    rate: float
    betas: tuple[float, float]
    eps: float
    max_norm: float
    average_weight: float


def update_parameter(
    weight: Tensor,
    grad: Tensor,
    moments: tuple[Tensor, Tensor],
    norm: Tensor,
    step: AdamWStep,
    *,
    average: Tensor | None = None,
    shadow: Tensor | None = None,
) -> None:
    """Update ``weight``, its ``moments`` and its ``average`` in place, and write the new weight to ``shadow``.

    All tensors have the weight's shape and are contiguous. All are float32 but the shadow, which is bf16. ``norm`` is
    the norm of all gradients, a scalar on the device, so that the host does not wait for it. The gradient stays as it
    is.
    """
    tensors = [weight, grad, *moments, *(tensor for tensor in (average, shadow) if tensor is not None)]
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("a parameter and what belongs to it are updated only where they are contiguous")
    beta1, beta2 = step.betas
    _update[(triton.cdiv(weight.numel(), BLOCK_WEIGHTS),)](
        weight,
        grad,
        *moments,
        weight if average is None else average,
        weight if shadow is None else shadow,
        norm,
        weight.numel(),
        step.max_norm,
        step.rate / (1 - beta1**step.number),
        1 - beta1,
        1 - beta2,
        (1 - beta2**step.number) ** 0.5,
        step.eps,
        0.0 if average is None else step.average_weight,
        HAS_SHADOW=shadow is not None,
        BLOCK=BLOCK_WEIGHTS,
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _update(  # type: ignore[no-untyped-def]
    weight,
    grad,
    exp_avg,
    exp_avg_sq,
    average,
    shadow,
    norm,
    count,
    max_norm,
    step_size,
    beta1_rest,
    beta2_rest,
    correction,  # square root of the second moment's bias correction
    eps,
    average_weight,  # 0: there is no average
    HAS_SHADOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one block of one parameter."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    scale = tl.minimum(max_norm / (tl.load(norm) + _NORM_EPS), 1.0)
    slope = tl.load(grad + at, mask=inside, other=0.0) * scale
    first = tl.load(exp_avg + at, mask=inside, other=0.0)
    second = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    first += beta1_rest * (slope - first)
    second += beta2_rest * (slope * slope - second)
    value = tl.load(weight + at, mask=inside, other=0.0)
    value -= step_size * first / (tl.sqrt(second) / correction + eps)
    tl.store(exp_avg + at, first, mask=inside)
    tl.store(exp_avg_sq + at, second, mask=inside)
    tl.store(weight + at, value, mask=inside)
    averaged = inside & (average_weight > 0.0)
    mean = tl.load(average + at, mask=averaged, other=0.0)
    change = value - mean  # as torch's lerp, which is exact at both ends
    mean = tl.where(average_weight < 0.5, mean + average_weight * change, value - change * (1.0 - average_weight))
    tl.store(average + at, mean, mask=averaged)
    if HAS_SHADOW:
        tl.store(shadow + at, value.to(tl.bfloat16), mask=inside)
