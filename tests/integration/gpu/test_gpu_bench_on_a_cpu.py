"""The bench of ``make test-gpu`` on a CPU at toy sizes: kernels in Triton's interpreter, and training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from aurora_runtime.training.model.tree_attention import KERNEL
from tests.bench.gpu import CHECKOUT
from tests.bench.gpu.parts import environment, parts_of
from tests.bench.gpu.report import NO_GPU, NO_GPU_HERE

NOT_INSTALLED = ("pydantic", "safetensors", "sglang", "boto3", "aiohttp", "transformers", "hypothesis")


def test_on_a_cpu_kernels_compute_what_torch_computes_and_each_row_says_that_no_gpu_ran_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    text = (tmp_path / "gpu.md").read_text()
    assert text in done.stdout
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    rows = [row for part in parts if part["figures"] for row in part["figures"].get("rows", [])]
    assert {row["kernel"] for row in rows} == {KERNEL}
    assert all(row["largest_difference"] < 0.05 for row in rows), "bf16 products"
    runs = [part["figures"]["losses"] for part in parts if part["figures"] and "losses" in part["figures"]]
    assert runs
    assert all(losses[-1] < losses[0] for losses in runs)
    assert text.count(NO_GPU) == len(rows) + len(runs)
    assert text.count(NO_GPU_HERE) == sum(bool(part["output"]) for part in parts) == 1, "the steps by part"
    assert "## Not run here" in text, "serving needs a GPU"


def test_the_kernel_is_measured_where_only_torch_and_triton_are_installed() -> None:
    (part,) = [part for part in parts_of("cpu", tiny=True) if part.name == f"kernel {KERNEL}"]
    program = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({NOT_INSTALLED!r}));"
        f"sys.argv = ['x', *{part.arguments!r}]; runpy.run_module({part.module!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(part), capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
