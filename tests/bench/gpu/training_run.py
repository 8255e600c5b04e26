"""Trains a draft for some steps on random requests in the shape of a real target: does it learn, how fast, in how much
memory?

Every step is the trainer's own (``Session.step``) and trains on a few requests that come again and again, so the loss
falls if gradients and update are right. Prints one JSON object in the last line. Needs torch, pydantic and safetensors.
"""

from __future__ import annotations

import json
import os
import time

import torch
from tests.bench.bench_command import bench_parser
from tests.bench.trainer import TARGET_SHAPES, fused_kernels, new_session, one_batch_shards

from aurora_runtime.traces import decode
from aurora_runtime.training.data.examples import examples_of

MEBIBYTE = 1 << 20


def main() -> None:
    parser = bench_parser("tests.bench.gpu.training_run", __doc__)
    parser.add_argument("--shape", choices=sorted(TARGET_SHAPES), default="qwen3-8b", help="the target's shape")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="where to train")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    options = parser.parse_args()
    device = torch.device(options.device)
    shape = TARGET_SHAPES[options.shape]
    session = new_session(shape, device)
    shards = one_batch_shards(shape, 2)
    batches = [[e for trace in decode(shard) for e in examples_of(trace, shape.vocab_size)] for shard in shards]
    losses, began = list[float](), time.perf_counter()
    for number in range(options.steps):
        losses.append(session.step(batches[number % len(batches)]))
        if number == min(10, options.steps - 1) // 2:  # past the warm-up
            positions, began = session.trained_positions, time.perf_counter()
    seconds = time.perf_counter() - began
    on_gpu = device.type == "cuda"
    result = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "shape": options.shape,
        "kernels": fused_kernels(device),
        "steps": session.steps,
        "losses": losses,
        "positions_per_second": (session.trained_positions - positions) / seconds,
        "peak_mebibytes": torch.cuda.max_memory_allocated() / MEBIBYTE if on_gpu else None,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
