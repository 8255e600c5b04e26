"""What a training step costs, by part: milliseconds, positions per second and peak memory.

The parts are those of the trainer's own step (``Session.step``), which is measured in turn with them, so that the table
shows whether they add up to it. Requests are random but of a real target's shape: how long a step takes does not depend
on what they say. On a CPU one thread works and its CPU time counts, because other work shares the machine; memory is
resident memory, measured apart, in a process that gives back what it frees at once. On CUDA both are the device's.

    python -m tests.bench.trainer [--shape smollm2-135m] [--rounds 10] [--batches 3] [--prompt 120] [--answer 60]
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from aurora_runtime.traces import RequestTrace, decode, encode
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.slot_batches import batch_by_slots
from aurora_runtime.training.model.draft import DraftConfig, DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.batch_loss import draft_outputs, loss_of_outputs
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session

DRAFT_VOCAB, TOP_K, CHAIN = 16384, 32, 3
READ, BATCH, FORWARD, LOSS, BACKWARD, OPTIMISER = PARTS = (
    "data: shard to examples",
    "data: examples to batch",
    "forward",
    "loss, and the head's gradients",
    "backward",
    "optimiser",
)
WHOLE: Final = "Session.step"
MIB: Final = 1 << 20
GIVE_BACK: Final = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Makes glibc return freed memory at once; slow, so never where time is measured."""

SHAPES: Final = {
    "smollm2-135m": DraftConfig(576, 1536, 9, 3, 64, 49152, DRAFT_VOCAB, 1e-5, 1e5, 8192, (1, 14, 26)),
    "qwen3-8b": DraftConfig(4096, 12288, 32, 8, 128, 151936, DRAFT_VOCAB, 1e-6, 1e6, 40960, (1, 17, 32)),
}


def request(shape: DraftConfig, seed: int, prompt: int, answer: int) -> RequestTrace:
    """A random request of about this many tokens, whose rounds accepted 0 to :data:`CHAIN` of as many drafts."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *size: int) -> torch.Tensor:
        return torch.randint(0, high, size, generator=generator)

    prompt, answer = (n // 2 + int(draw(n, 1)) for n in (prompt, answer))
    length = prompt + answer
    roots, accepted = [prompt], list[int]()
    while roots[-1] < length - 1:
        accepted.append(min(int(draw(CHAIN + 1, 1)), length - 2 - roots[-1]))
        roots.append(roots[-1] + accepted[-1] + 1)
    del roots[-1]
    rounds, width = len(roots), CHAIN + 1
    depth = torch.arange(width).repeat(rounds)
    on_path = depth <= torch.tensor(accepted).repeat_interleave(width)
    tokens = draw(DRAFT_VOCAB, length).to(torch.int32)
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
        node_token=torch.where(on_path, tokens[position], draw(DRAFT_VOCAB, rounds * width).to(torch.int32)),
        node_parent=(depth - 1).to(torch.int16),
        node_accepted=on_path,
        # Distinct, and about as often outside the draft's vocabulary as a real answer's tokens.
        top_ids=((draw(DRAFT_VOCAB, rounds * width, 1) + 57 * torch.arange(TOP_K)) % shape.vocab_size).to(torch.int32),
        top_logprobs=top.to(torch.float16).expand(rounds * width, -1).contiguous(),
        rest=torch.full((rounds * width,), 0.05, dtype=torch.float16),
    )


def session_of(shape: DraftConfig, device: torch.device) -> Session:
    torch.manual_seed(0)
    draft = DraftModel(shape, torch.randn(shape.vocab_size, shape.hidden_size).to(torch.bfloat16))
    return Session(draft, VocabularyMap.of(torch.arange(DRAFT_VOCAB), shape.vocab_size), Recipe(), device)


def shards(shape: DraftConfig, batches: int, prompt: int, answer: int) -> list[bytes]:
    """Encoded requests, one batch of the trainer's size each."""
    traces, found, seed = list[RequestTrace](), list[bytes](), 0
    while len(found) < batches:
        traces.append(request(shape, seed, prompt, answer))
        seed += 1
        examples = [e for trace in traces for e in examples_of(trace, shape.vocab_size)]
        if len(batch_by_slots(examples, Recipe().batch_slots)) > 1 and len(traces) > 1:
            found.append(encode(traces[:-1]))
            traces = traces[-1:]
    return found


@dataclass
class Meter:
    """Samples of each part: what it took in milliseconds or, with ``memory``, the peak in MiB."""

    device: torch.device
    memory: bool
    samples: dict[str, list[float]] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        before = self._start()
        yield
        self.samples.setdefault(name, []).append(self._end(before))

    def _start(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return time.perf_counter()
        if self.memory:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (man 5 proc)
        return time.process_time()

    def _end(self, before: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / MIB if self.memory else 1000 * (time.perf_counter() - before)
        return resident("VmHWM") if self.memory else 1000 * (time.process_time() - before)


def resident(what: str) -> float:
    """``VmRSS``, what this process holds, or ``VmHWM``, its peak, in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


def measured_step(session: Session, data: bytes, meter: Meter) -> None:
    """One step by its parts, then the same examples through the trainer's own step."""
    with meter.part(READ):
        vocab = session.draft.config.vocab_size
        examples: list[Example] = [e for trace in decode(data) for e in examples_of(trace, vocab)]
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
    with meter.part(WHOLE):
        session.step(examples)


def measure(options: argparse.Namespace, device: torch.device, *, memory: bool) -> Meter:
    """``rounds`` times over every batch; the first round warms up and is dropped."""
    shape = SHAPES[options.shape]
    session = session_of(shape, device)
    data = shards(shape, options.batches, options.prompt, options.answer)
    meter = Meter(device, memory)
    for number in range(options.rounds + 1):
        if number == 1:
            meter = Meter(device, memory)
        for shard in data:
            measured_step(session, shard, meter)
    return meter


def peaks_apart() -> dict[str, list[float]]:
    """The memory samples of a process of its own with this one's arguments."""
    command = [sys.executable, "-m", "tests.bench.trainer", *sys.argv[1:], "--peaks"]
    done = subprocess.run(command, env=os.environ | GIVE_BACK, stdout=subprocess.PIPE, check=True)
    samples: dict[str, list[float]] = json.loads(done.stdout)
    return samples


def spread(values: Sequence[float], digits: int = 0) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.{digits}f} [{low:,.{digits}f}-{high:,.{digits}f}]"


def table(meter: Meter, peaks: dict[str, list[float]]) -> str:
    """Markdown: medians [quartiles] of all steps."""
    sums = [sum(times) for times in zip(*(meter.samples[part] for part in PARTS[1:]), strict=True)]
    rows = {**{part: meter.samples[part] for part in PARTS}, "sum without the first": sums, WHOLE: meter.samples[WHOLE]}
    whole = statistics.median(sums)
    lines = ["| part | ms | share | positions/s | peak MiB |", "|---|---|---|---|---|"]
    for name, times in rows.items():
        rates = [1000 * positions / ms for positions, ms in zip(meter.positions, times, strict=True)]
        share = "" if name == READ else f"{statistics.median(times) / whole:.0%}"
        peak = f"{statistics.median(peaks[name]):,.0f} (max {max(peaks[name]):,.0f})" if name in peaks else ""
        lines.append(f"| {name} | {spread(times, 1)} | {share} | {spread(rates)} | {peak} |")
    return "\n".join(lines)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = "qwen3-8b" if device.type == "cuda" else "smollm2-135m"
    parser.add_argument("--shape", choices=sorted(SHAPES), default=usual, help="the target's")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batches", type=int, default=3, help="different batches, each stepped on once per round")
    parser.add_argument("--prompt", type=int, default=120, help="tokens, give or take half")
    parser.add_argument("--answer", type=int, default=60, help="tokens, give or take half")
    parser.add_argument("--peaks", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peaks:
        print(json.dumps(measure(options, device, memory=True).samples))
        return
    before = os.getloadavg()[0]
    meter = measure(options, device, memory=False)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, 1 thread, CPU time"
    print(
        f"{options.shape} on {name}, torch {torch.__version__}, load {before:.1f} to {os.getloadavg()[0]:.1f}; "
        f"{len(meter.positions)} steps of {statistics.median(meter.positions):.0f} positions\n"
    )
    print(table(meter, peaks_apart()))


if __name__ == "__main__":
    main()
