"""The packing kernel writes the reference's bytes, and compiles for GPUs. No GPU has run it."""

from __future__ import annotations

import pytest

from aurora_runtime.kernels import path_states_float8
from tests.unit.kernels import interpreted_path_states_float8
from tests.unit.kernels.compilation import compile_for, run_interpreted


def test_the_kernel_writes_the_bytes_of_the_reference() -> None:
    run_interpreted(interpreted_path_states_float8.__name__)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("states", ["*bf16", "*fp16", "*fp32"])
def test_the_kernel_compiles_for_gpus(states: str, architecture: int) -> None:
    types = {"states": states, "codes": "*u8", "scale": "*i16", "stride": "i32", "width": "i32"}
    compile_for(architecture, path_states_float8._pack, types, {"BLOCK": path_states_float8.BLOCK_ELEMENTS})
