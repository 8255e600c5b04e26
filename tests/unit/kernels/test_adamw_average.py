"""The fused optimizer step is torch's, and compiles for GPUs. No GPU has run it."""

from __future__ import annotations

import pytest
import torch

from aurora_runtime.kernels import adamw_average
from aurora_runtime.kernels.adamw_average import AdamWStep, update_parameter
from tests.unit.kernels import interpreted_adamw_average
from tests.unit.kernels.compilation import compile_for, run_interpreted


def test_the_kernel_computes_what_torch_computes() -> None:
    run_interpreted(interpreted_adamw_average.__name__)


FLOATS = ["weight", "grad", "exp_avg", "exp_avg_sq", "average", "norm"]
NUMBERS = ["max_norm", "step_size", "beta1_rest", "beta2_rest", "correction", "eps", "average_weight"]


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("has_shadow", [True, False])
def test_the_kernel_compiles_for_gpus(has_shadow: bool, architecture: int) -> None:
    types = {**dict.fromkeys(FLOATS, "*fp32"), **dict.fromkeys(NUMBERS, "fp32"), "count": "i32"}
    shadow = "*bf16" if has_shadow else "*fp32"
    constants = {"HAS_SHADOW": has_shadow, "BLOCK": adamw_average.BLOCK_WEIGHTS}
    compile_for(architecture, adamw_average._update, {**types, "shadow": shadow}, constants)


def test_a_gradient_in_another_layout_is_refused() -> None:
    weight, grad = torch.zeros(2, 3), torch.zeros(3, 2).T
    step = AdamWStep(1, 1e-3, (0.9, 0.95), 1e-8, 1.0, 0.0)
    with pytest.raises(ValueError, match="contiguous"):
        update_parameter(weight, grad, (weight, weight), torch.ones(()), step)
