"""The fused log-probabilities are those of torch, and the kernels compile for GPUs. No GPU has run them."""

from __future__ import annotations

import pytest
import torch

from aurora_runtime.kernels import bucket_logprobs, kernel_switch
from aurora_runtime.kernels.kernel_switch import VARIABLE, Kernel, runs_fused
from tests.unit.kernels import interpreted_bucket_logprobs
from tests.unit.kernels.compilation import compile_for, run_interpreted


def test_the_kernels_compute_what_the_reference_computes() -> None:
    run_interpreted(interpreted_bucket_logprobs.__name__)


TYPES = {
    "ids": "*i64",
    "captured": "*fp32",
    "captured_grad": "*fp32",
    "result": "*fp32",
    "total": "*fp32",
    "elsewhere": "*fp32",
    "stride": "i32",
    "tokens": "i32",
    "count": "i32",
}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("logits", ["*bf16", "*fp32"])
@pytest.mark.parametrize(
    ("kernel", "block"),
    [("_take_captured", 64), ("_log_sum_exp", 4096), ("_write_gradient", 4096), ("_put_captured", 64)],
)
def test_the_kernels_compile_for_gpus(kernel: str, block: int, logits: str, architecture: int) -> None:
    function = getattr(bucket_logprobs, kernel)
    compile_for(architecture, function, {**TYPES, "logits": logits}, {"BLOCK": block})


def test_a_kernel_is_off_until_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    results = []
    for value in (None, "bucket-logprobs", " bucket-logprobs ,flash"):
        kernel_switch._turned_on.cache_clear()
        monkeypatch.delenv(VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(VARIABLE, value)
        results.append((runs_fused(Kernel.BUCKET_LOGPROBS, cuda), runs_fused(Kernel.BUCKET_LOGPROBS, cpu)))
    kernel_switch._turned_on.cache_clear()
    assert results == [(False, False), (True, False), (True, False)]
    assert "names no kernel: flash" in caplog.text
