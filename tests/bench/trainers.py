"""How fast does our trainer pass over requests, compared with two published online trainers, and with what memory?

Ours is the trainer's own step on a fresh batch. The steps of SpecForge's online trainer and of the published Aurora
loop are re-created in tests/bench/published_steps.py, which says how. All train a draft of the same sizes, on the same
random requests, on one thread of the same CPU, in turn. A round is one step on each batch. The order of the trainers
turns with each round.

Positions are the slots of the requests, prompts included, so all trainers pass over the same number. A ratio of rates
does not say what a draft learns from a pass: our step unrolls fewer depths, from answers only, and the trainer repeats
it on replayed batches.

Prints a row per trainer: positions per second of CPU time with quartiles over rounds, the peak of resident memory
without what the process held before, and the ratio of our rate to theirs with its 95 % interval over rounds. Memory is
measured separately, in a process for each trainer whose allocator returns freed memory at once. With --depths all
trainers unroll the draft equally deep.

Needs a CPU only.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from tests.bench.bench_command import (
    add_lock_option,
    bench_parser,
    commit,
    hold_lock,
    machine,
    peak_resident_mebibytes,
)
from tests.bench.markdown import markdown_table, median_and_quartiles
from tests.bench.published_steps import PUBLISHED_TRAINERS, PublishedSession, WholeSequences
from tests.bench.trainer import (
    DRAFT_VOCABULARY,
    MEBIBYTE,
    RETURN_FREED_MEMORY,
    TARGET_SHAPES,
    new_session,
    one_batch_shards,
)

from aurora_protocol.gate.intervals import Interval, mean_interval
from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.traces import RequestTrace, decode
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.model.draft import DraftModel

OURS: Final = "Aurora operator"
NAMES: Final = (OURS, *(trainer.name for trainer in PUBLISHED_TRAINERS))
CPU: Final = torch.device("cpu")
HEAD: Final = ("Trainer", "positions/s", "peak MiB", "our rate divided by theirs [95 % interval]")


def steps_of(
    name: str, shape: DraftConfig, batches: Sequence[Sequence[RequestTrace]], depths: int | None = None
) -> list[Callable[[], object]]:
    """A step of the trainer ``name`` on each batch. ``depths``: how deep it unrolls, if not as deep as by itself."""
    generator = torch.Generator().manual_seed(0)
    # All trainers hold the target's head: ours for tokens that come into the vocabulary map.
    head = torch.randn(shape.vocab_size, shape.hidden_size, generator=generator).to(torch.bfloat16)
    if name == OURS:
        session = new_session(shape, CPU)
        if depths is not None:
            session.recipe = replace(session.recipe, unroll_steps=depths)
        session.draft.register_buffer("target_head", head, persistent=False)
        shares = [[e for trace in batch for e in examples_of(trace, shape.vocab_size)] for batch in batches]
        return [lambda share=share: session.step(share) for share in shares]  # type: ignore[misc]
    trainer = next(trainer for trainer in PUBLISHED_TRAINERS if trainer.name == name)
    trainer = replace(trainer, depths=trainer.depths if depths is None else depths)
    torch.manual_seed(0)
    draft = DraftModel(shape, torch.randn(shape.vocab_size, shape.hidden_size).to(torch.bfloat16))
    published = PublishedSession(trainer, draft, head, torch.arange(DRAFT_VOCABULARY))
    sequences = [WholeSequences.of(batch) for batch in batches]
    return [lambda own=own: published.step(own) for own in sequences]  # type: ignore[misc]


@dataclass(frozen=True)
class Comparison:
    """CPU seconds of each round by trainer, and the positions of a round."""

    seconds: dict[str, list[float]]
    positions: int

    def rates(self, name: str) -> list[float]:
        return [self.positions / seconds for seconds in self.seconds[name]]

    def ratio(self, name: str) -> tuple[float, Interval]:
        """Our rate divided by that of ``name``: the geometric mean over rounds, and its 95 % interval."""
        logs = [math.log(theirs / ours) for ours, theirs in zip(self.seconds[OURS], self.seconds[name], strict=True)]
        low, high = mean_interval(logs, seed=0)
        return math.exp(sum(logs) / len(logs)), Interval(math.exp(low), math.exp(high))


def compare(
    shape: DraftConfig, batches: Sequence[Sequence[RequestTrace]], rounds: int, depths: int | None = None
) -> Comparison:
    """Measure all trainers in turn. One more round before the others warms up."""
    steps = {name: steps_of(name, shape, batches, depths) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(rounds + 1):
        turn = number % len(NAMES)
        for name in (*NAMES[turn:], *NAMES[:turn]):
            began = time.process_time()
            for step in steps[name]:
                step()
            if number:
                seconds[name].append(time.process_time() - began)
    return Comparison(seconds, sum(trace.hidden.shape[0] for batch in batches for trace in batch))


def peak_mebibytes(
    name: str, shape: DraftConfig, batches: Sequence[Sequence[RequestTrace]], depths: int | None = None
) -> float:
    """The peak of resident memory that the trainer ``name`` adds to this process in two rounds."""
    before = resident_mebibytes()
    steps = steps_of(name, shape, batches, depths)
    for step in (*steps, *steps):
        step()
    return peak_resident_mebibytes() - before


def resident_mebibytes() -> float:
    """The resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def measured_peak(name: str) -> float:
    """The peak of another process with the same arguments."""
    command = [sys.executable, "-m", "tests.bench.trainers", *sys.argv[1:], "--peak", name]
    done = subprocess.run(command, env=os.environ | RETURN_FREED_MEMORY, stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout)


def table(comparison: Comparison, peaks: dict[str, float]) -> str:
    """A row per trainer. ``peaks`` are in MiB."""
    rows = []
    for name in NAMES:
        ratio, (low, high) = comparison.ratio(name)
        shown = "" if name == OURS else f"{ratio:.2f} [{low:.2f}-{high:.2f}]"
        rows.append([name, median_and_quartiles(comparison.rates(name), 0), f"{peaks[name]:,.0f}", shown])
    return markdown_table(HEAD, rows)


def main() -> None:
    parser = bench_parser("tests.bench.trainers", __doc__)
    parser.add_argument(
        "--shape",
        choices=sorted(TARGET_SHAPES),
        default="smollm2-135m",
        help="the target's shape; tiny shows only whether the bench runs",
    )
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds, at least two; one more warms up")
    parser.add_argument("--batches", type=int, default=3, help="different batches, each stepped on once per round")
    parser.add_argument("--prompt-tokens", type=int, default=120, help="mean tokens of a prompt, give or take half")
    parser.add_argument("--answer-tokens", type=int, default=60, help="mean tokens of an answer, give or take half")
    parser.add_argument(
        "--depths", type=int, help="draft steps that every trainer unrolls (default: as many as its own)"
    )
    parser.add_argument("--peak", choices=NAMES, help=argparse.SUPPRESS)
    add_lock_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = TARGET_SHAPES[options.shape]
    shards = one_batch_shards(shape, options.batches, options.prompt_tokens, options.answer_tokens)
    batches = [list(decode(shard)) for shard in shards]
    if options.peak:
        print(peak_mebibytes(options.peak, shape, batches, options.depths))
        return
    with hold_lock(options.lock):
        comparison = compare(shape, batches, options.rounds, options.depths)
        peaks = {name: measured_peak(name) for name in NAMES}
    print(
        f"{options.shape}, commit {commit()}, {machine()}, 1 thread, CPU time, load {os.getloadavg()[0]:.1f};"
        f" depths {options.depths or 'of each trainer'}; {options.rounds} rounds of {options.batches} batches,"
        f" {comparison.positions:,} positions\n"
    )
    print(table(comparison, peaks))


if __name__ == "__main__":
    main()
