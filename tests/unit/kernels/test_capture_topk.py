"""The scan of the logits is the reference's, and compiles for GPUs. No GPU has run it."""

from __future__ import annotations

import pytest

from aurora_runtime.kernels import capture_topk
from aurora_runtime.serving.capture.top_tokens import BLOCK_TOKENS
from tests.unit.kernels import interpreted_capture_topk
from tests.unit.kernels.compilation import compile_for, run_interpreted


def test_capture_keeps_what_it_keeps_without_the_kernel() -> None:
    run_interpreted(interpreted_capture_topk.__name__)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("logits", ["*bf16", "*fp32"])
def test_the_kernel_compiles_for_gpus(logits: str, architecture: int) -> None:
    types = {
        "logits": logits,
        **dict.fromkeys(["maxima", "largest", "sums"], "*fp32"),
        **dict.fromkeys(["stride", "tokens", "blocks"], "i32"),
    }
    constants = {
        "PROGRAM": capture_topk.BLOCKS_PER_PROGRAM,
        "STEP": capture_topk.BLOCKS_PER_STEP,
        "BLOCK": BLOCK_TOKENS,
    }
    compile_for(architecture, capture_topk._scan, types, constants)
