"""How much does a training step cost, by part: milliseconds, positions per second and peak memory?

The parts are those of the trainer's own step (``Session.step``). The whole step is measured in turn with its parts, so
that the table shows whether the parts add up to the whole. Requests are random, in the shape of a real target, because
the cost of a step does not depend on their content.

On a CPU one thread works, and its CPU time is measured, because other work shares the machine. Memory is resident
memory. It is measured separately, in a process whose allocator returns freed memory at once. On CUDA, time is
wall-clock time with the device synchronised, and memory is the device's allocated memory.

``AURORA_KERNELS=tree-attention`` turns the fused attention on, on CUDA only. The output says so.

The time in which the loop takes a snapshot of the session's weights and moments for a save is measured too.

Prints a row per part: medians [quartiles] over all steps, and the peak memory.

Takes about five minutes on a CPU (estimated). Uses a CUDA GPU where there is one, and a CPU otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from tests.assets.traces.sources import sources_without_controller
from tests.bench.bench_command import bench_parser, load_around, load_average, peak_resident_mebibytes
from tests.bench.markdown import markdown_table, median_and_quartiles

from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.traces import RequestTrace, decode, encode
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.tree_attention import KERNEL, runs_fused
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.batch_loss import draft_outputs, loss_of_outputs
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session

DRAFT_VOCABULARY, TOP_K, CHAIN_STEPS = 16384, 32, 3
PROMPT_TOKENS, ANSWER_TOKENS = 120, 60
"""Mean tokens of a prompt and of an answer."""
READ, BATCH, FORWARD, LOSS, BACKWARD, OPTIMISER = PARTS = (
    "data: shard to examples",
    "data: examples to batch",
    "forward",
    "loss, and the head's gradients",
    "backward",
    "optimiser",
)
WHOLE_STEP: Final = "Session.step"
SNAPSHOT: Final = "snapshot for a save (once per save, not per step)"
"""While the snapshot is taken the loop waits. The rest of a save runs beside the loop."""
MEBIBYTE: Final = 1 << 20
RETURN_FREED_MEMORY: Final = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Variables that make glibc return freed memory at once. They slow a process down, so they are never set where time is
measured."""

TARGET_SHAPES: Final = {
    "toy": DraftConfig(32, 48, 4, 2, 8, 8, 16484, DRAFT_VOCABULARY, 1e-5, 1e4, 512, (1, 3, 4)),
    "smollm2-135m": DraftConfig(576, 1536, 9, 3, 64, 64, 49152, DRAFT_VOCABULARY, 1e-5, 1e5, 8192, (1, 14, 26)),
    "tiny": DraftConfig(32, 48, 4, 2, 8, 8, 2 * DRAFT_VOCABULARY, DRAFT_VOCABULARY, 1e-5, 1e4, 512, (1, 3, 4)),
    "qwen3-8b": DraftConfig(4096, 12288, 32, 8, 128, 128, 151936, DRAFT_VOCABULARY, 1e-6, 1e6, 40960, (1, 17, 32)),
    "llama-8b": DraftConfig(4096, 14336, 32, 8, 128, 128, 128256, DRAFT_VOCABULARY, 1e-5, 5e5, 131072, (1, 15, 28)),
    "coder-next": DraftConfig(2048, 5120, 16, 2, 256, 64, 151936, DRAFT_VOCABULARY, 1e-6, 1e7, 262144, (1, 23, 44)),
}


def random_request(shape: DraftConfig, seed: int) -> RequestTrace:
    """A random request whose prompt and answer have the usual numbers of tokens, give or take half.

    Each of its rounds proposed a chain of :data:`CHAIN_STEPS` tokens and accepted none to all of them.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *size: int) -> torch.Tensor:
        return torch.randint(0, high, size, generator=generator)

    prompt, answer = (n // 2 + int(draw(n, 1)) for n in (PROMPT_TOKENS, ANSWER_TOKENS))
    length = prompt + answer
    roots, accepted = [prompt], list[int]()
    while roots[-1] < length - 1:
        accepted.append(min(int(draw(CHAIN_STEPS + 1, 1)), length - 2 - roots[-1]))
        roots.append(roots[-1] + accepted[-1] + 1)
    del roots[-1]
    rounds, width = len(roots), CHAIN_STEPS + 1
    depth = torch.arange(width).repeat(rounds)
    on_path = depth <= torch.tensor(accepted).repeat_interleave(width)
    tokens = draw(DRAFT_VOCABULARY, length).to(torch.int32)
    position = (torch.tensor(roots).repeat_interleave(width) + depth).clamp(max=length - 1)
    top = torch.arange(0.0, -TOP_K / 2, -0.5).log_softmax(-1) - 0.05
    return RequestTrace(
        request=seed,
        prompt_length=prompt,
        hidden_start=0,
        tokens=tokens,
        hidden=torch.randn(length - 1, 3 * shape.hidden_size, generator=generator).to(torch.bfloat16),
        root=torch.tensor(roots, dtype=torch.int32),
        node_count=torch.full((rounds,), width, dtype=torch.int32),
        accepted=torch.tensor(accepted, dtype=torch.int32),
        version=torch.zeros(rounds, dtype=torch.int32),
        source=sources_without_controller(torch.full((rounds,), width)),
        node_token=torch.where(on_path, tokens[position], draw(DRAFT_VOCABULARY, rounds * width).to(torch.int32)),
        node_parent=(depth - 1).to(torch.int16),
        node_accepted=on_path,
        # Distinct tokens, as often outside the draft's vocabulary as those of a real answer.
        top_ids=((draw(DRAFT_VOCABULARY, rounds * width, 1) + 57 * torch.arange(TOP_K)) % shape.vocab_size).to(
            torch.int32
        ),
        top_logprobs=top.to(torch.float16).expand(rounds * width, -1).contiguous(),
        uncaptured_mass=torch.full((rounds * width,), 0.05, dtype=torch.float16),
    )


def new_session(shape: DraftConfig, device: torch.device) -> Session:
    """A training session with a random draft and a random target embedding."""
    torch.manual_seed(0)
    draft = DraftModel(shape, torch.randn(shape.vocab_size, shape.hidden_size).to(torch.bfloat16))
    return Session(draft, VocabularyMap.of(torch.arange(DRAFT_VOCABULARY), shape.vocab_size), Recipe(), device)


def one_batch_shards(shape: DraftConfig, batches: int) -> list[bytes]:
    """Encoded shards of random requests. Each shard fills one batch of the trainer's size."""
    traces, shards, seed = list[RequestTrace](), list[bytes](), 0
    while len(shards) < batches:
        traces.append(random_request(shape, seed))
        seed += 1
        examples = [e for trace in traces for e in examples_of(trace, shape.vocab_size)]
        if len(Recipe().batch_bound.batches(examples)) > 1 and len(traces) > 1:
            shards.append(encode(traces[:-1]))
            traces = traces[-1:]
    return shards


@dataclass
class Meter:
    """Samples of each part, in milliseconds or, with ``memory``, as the peak in MiB.

    Attributes:
        positions: trained positions of each step.
    """

    device: torch.device
    memory: bool
    samples: dict[str, list[float]] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the part ``name`` while the context lasts."""
        before = self._start()
        yield
        self.samples.setdefault(name, []).append(self._end(before))

    def _start(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return time.perf_counter()
        if self.memory:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak (man 5 proc)
        return time.process_time()

    def _end(self, before: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return (
                torch.cuda.max_memory_allocated() / MEBIBYTE if self.memory else 1000 * (time.perf_counter() - before)
            )
        return peak_resident_mebibytes() if self.memory else 1000 * (time.process_time() - before)


def measure_step(session: Session, shard: bytes, meter: Meter) -> None:
    """Measure one step by its parts, and then the trainer's own step on the same examples."""
    with meter.part(READ):
        vocab = session.draft.config.vocab_size
        examples: list[Example] = [e for trace in decode(shard) for e in examples_of(trace, vocab)]
    with meter.part(BATCH):
        batch = session.batch(examples)
    with meter.part(FORWARD):
        outputs = draft_outputs(session.draft, batch)
    with meter.part(LOSS):
        loss = loss_of_outputs(session.draft, outputs, batch, session.recipe, lambda own: own)
    del outputs
    with meter.part(BACKWARD):
        loss.backward()  # type: ignore[no-untyped-call]
    with meter.part(OPTIMISER):
        session.apply_gradients(float(loss.detach()))
    meter.positions.append(batch.positions)
    del batch, loss
    with meter.part(WHOLE_STEP):
        session.step(examples)
    with meter.part(SNAPSHOT):
        session.state()


def measure(options: argparse.Namespace, device: torch.device, *, memory: bool) -> Meter:
    """Measure a step on every batch, ``rounds`` times. One more round before them warms up."""
    shape = TARGET_SHAPES[options.shape]
    session = new_session(shape, device)
    shards = one_batch_shards(shape, options.batches)
    meter = Meter(device, memory)
    for number in range(options.rounds + 1):
        if number == 1:
            meter = Meter(device, memory)
        for shard in shards:
            measure_step(session, shard, meter)
    return meter


def measure_peaks_separately() -> dict[str, list[float]]:
    """The peak memory samples, in MiB by part, measured by another process with the same arguments."""
    command = [sys.executable, "-m", "tests.bench.trainer", *sys.argv[1:], "--peaks"]
    done = subprocess.run(command, env=os.environ | RETURN_FREED_MEMORY, stdout=subprocess.PIPE, check=True)
    samples: dict[str, list[float]] = json.loads(done.stdout)
    return samples


def fused_kernels(device: torch.device) -> str:
    """The kernels of the trainer that run on ``device``."""
    return KERNEL if runs_fused(device) else "none"


def table(meter: Meter, peaks: dict[str, list[float]]) -> str:
    """A row per part, one for the sum of the parts, and one for the whole step. ``peaks`` are in MiB, by part."""
    sums = [sum(times) for times in zip(*(meter.samples[part] for part in PARTS[1:]), strict=True)]
    samples = {part: meter.samples[part] for part in PARTS}
    samples |= {"sum without the first": sums} | {name: meter.samples[name] for name in (WHOLE_STEP, SNAPSHOT)}
    whole = statistics.median(sums)
    rows = []
    for name, times in samples.items():
        rates = [1000 * positions / ms for positions, ms in zip(meter.positions, times, strict=True)]
        share = "" if name in (READ, SNAPSHOT) else f"{statistics.median(times) / whole:.0%}"
        peak = f"{statistics.median(peaks[name]):,.0f} (max {max(peaks[name]):,.0f})" if name in peaks else ""
        rate = "" if name == SNAPSHOT else median_and_quartiles(rates, 0)
        rows.append([name, median_and_quartiles(times, 1), share, rate, peak])
    return markdown_table(["part", "ms", "share of the sum", "positions/s", "peak MiB"], rows)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = bench_parser("tests.bench.trainer", __doc__)
    usual = "qwen3-8b" if device.type == "cuda" else "smollm2-135m"
    parser.add_argument(
        "--shape",
        choices=sorted(TARGET_SHAPES),
        default=usual,
        help="the target's shape; tiny shows only whether the bench runs",
    )
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds over all batches; one more warms up")
    parser.add_argument("--batches", type=int, default=3, help="different batches, each stepped on once per round")
    parser.add_argument("--peaks", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peaks:
        print(json.dumps(measure(options, device, memory=True).samples))
        return
    load_before = load_average()
    meter = measure(options, device, memory=False)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, 1 thread, CPU time"
    print(
        f"{options.shape} on {name}, torch {torch.__version__}, "
        f"kernels on: {fused_kernels(device)}; {load_around(load_before)}; "
        f"{len(meter.positions)} steps of {statistics.median(meter.positions):.0f} positions\n"
    )
    print(table(meter, measure_peaks_separately()))


if __name__ == "__main__":
    main()
