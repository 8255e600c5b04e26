"""What is asked of a device is what it does."""

from __future__ import annotations

import torch

from aurora_runtime.precision import autocast, product_dtype


def test_onednn_takes_what_this_machine_is_said_to_multiply() -> None:
    weight = torch.zeros(8, 8, dtype=product_dtype("cpu"))
    assert torch.ops.mkldnn._reorder_linear_weight(weight).shape == weight.shape


def test_products_under_autocast_are_of_that_dtype() -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast("cpu"):
        assert layer(torch.zeros(2, 4)).dtype is product_dtype("cpu")
