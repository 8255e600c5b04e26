"""Which learning rate and which batch are best, and how does that depend on the width of the target?

A target of another width is SmolLM2 with wider hidden states, which gives the same answers
(tests/assets/wide_target.py). An untrained draft for it learns from the recorded traffic by the trainer's default
recipe, but for the learning rate, the size of a batch and --replay. The vocabulary map holds the most frequent answer
tokens of the traffic, and does not change. The draft is evaluated on held-out requests, with chains of 3 draft tokens.

Prints a row per width, learning rate and batch size: the acceptance length untrained and after each quarter of the
traffic. With --out FILE every run is saved at once, and a saved run is not repeated.

With --replay 1 a run takes about 30 CPU seconds at a width of 576, and 10 times as many at 2,304. Needs a CPU only.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tests.assets.traces.drafted import CHAINS, MESSAGES_BY_DOMAIN, drafted_traces
from tests.assets.trained_draft import load_small_target
from tests.assets.wide_target import Widening, widened
from tests.bench.bench_command import bench_parser, commit, machine
from tests.bench.learning.configurations import Configuration
from tests.bench.learning.learner import Learner
from tests.bench.learning.matching import Match
from tests.bench.learning.recipe_run import fresh_traffic
from tests.bench.markdown import markdown_table

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.token_counts import counts_of
from aurora_runtime.training.model.initial_draft import draft_config, initial_draft, initial_vocabulary
from aurora_runtime.training.model.vocabulary_map import VocabularyMap, best_map
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.target.target_model import TargetModel

QUARTERS: Final = 4
HEAD: Final = (
    "Width",
    "Learning rate",
    "Batch, slots",
    "Untrained",
    "A quarter",
    "Half",
    "Three quarters",
    "All",
    "CPU s",
)


@dataclass(frozen=True, order=True)
class Settings:
    """The settings that all runs of a table share."""

    traffic: str
    requests: int
    replay: int
    vocabulary: int


@dataclass(frozen=True)
class Run:
    """One draft that learned. ``lengths`` are its acceptance lengths, untrained and after each quarter."""

    settings: Settings
    width: int
    rate: float
    slots: int
    seed: int
    lengths: tuple[float, ...]
    cpu_seconds: float

    @property
    def key(self) -> tuple[Settings, int, float, int, int]:
        return self.settings, self.width, self.rate, self.slots, self.seed


def vocabulary_of(traces: Iterable[RequestTrace], target: TargetModel, size: int) -> VocabularyMap:
    """The map of ``size`` tokens that the answers in ``traces`` have most."""
    vocab_size = target.identity.vocab_size
    first = VocabularyMap.of(initial_vocabulary(size, vocab_size, target.special_tokens), vocab_size)
    counts = counts_of([example for trace in traces for example in examples_of(trace, vocab_size)], vocab_size)
    ids = best_map(first, counts, target.special_tokens)
    return first if ids is None else VocabularyMap.of(ids, vocab_size)


def learn(
    target: TargetModel, vocabulary: VocabularyMap, recipe: Recipe, traces: Sequence[RequestTrace], seed: int
) -> tuple[tuple[float, ...], float]:
    """The acceptance lengths of a draft of ``target`` that learns from ``traces``, and the CPU seconds of learning."""
    draft = initial_draft(target, draft_config(target, vocabulary.to_target.numel()), vocabulary.to_target)
    session = Session(draft, vocabulary, recipe, torch.device("cpu"))
    session.generator.manual_seed(seed)
    learner = Learner(session, Configuration("", recipe), Match.TRAFFIC)
    held_out, fresh = learner.held_out(traces), fresh_traffic(traces, None)
    lengths, cpu_seconds = [learner.evaluate(held_out, 0).acceptance_length], 0.0
    for quarter in range(QUARTERS):
        shard = fresh[len(fresh) * quarter // QUARTERS : len(fresh) * (quarter + 1) // QUARTERS]
        began = time.process_time()
        learner.learn(shard, held_out)
        cpu_seconds += time.process_time() - began
        lengths.append(learner.evaluate(held_out, 0).acceptance_length)
    return tuple(lengths), cpu_seconds


def table(runs: Sequence[Run]) -> str:
    """A row per width, learning rate and batch size. Cells are means over seeds."""
    rows = []
    for (width, rate, slots), group in itertools.groupby(runs, key=lambda run: (run.width, run.rate, run.slots)):
        own = list(group)
        lengths = [[run.lengths[i] for run in own] for i in range(QUARTERS + 1)]
        cells = [
            f"{statistics.fmean(each):.2f}" + (f" ± {statistics.stdev(each):.2f}" if len(each) > 1 else "")
            for each in lengths
        ]
        seconds = statistics.fmean(run.cpu_seconds for run in own)
        rows.append([f"{width:,}", f"{rate:g}", str(slots), *cells, f"{seconds:.0f}"])
    return markdown_table(HEAD, rows)


def _saved(out: Path | None) -> list[Run]:
    if out is None or not out.exists():
        return []
    return [
        Run(**run | {"settings": Settings(**run["settings"]), "lengths": tuple(run["lengths"])})
        for run in json.loads(out.read_text())
    ]


def _save(out: Path | None, runs: Sequence[Run]) -> None:
    if out is not None:
        unfinished = out.with_suffix(".part")
        unfinished.write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1))
        unfinished.replace(out)


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.learning.widths", __doc__)
    parser.add_argument("--traffic", choices=sorted(MESSAGES_BY_DOMAIN), default="json", help="domain to learn")
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument(
        "--factors", type=int, nargs="+", default=[1, 2, 4], help="widths, as multiples of SmolLM2's 576"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3], help="learning rates to compare"
    )
    parser.add_argument("--slots", type=int, nargs="+", default=[Recipe.batch_slots], help="batch sizes to compare")
    parser.add_argument("--replay", type=int, default=Recipe.replay, help="replayed batches beside a fresh one")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens of the draft's vocabulary map")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run per combination and seed")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file of the runs")
    return parser.parse_args()


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    settings = Settings(options.traffic, options.requests, options.replay, options.vocabulary)
    runs = _saved(options.out)
    done = {run.key for run in runs}
    narrow, recorded = load_small_target(), drafted_traces(options.traffic, options.requests, CHAINS)
    vocabulary = vocabulary_of(fresh_traffic(recorded, None), narrow, options.vocabulary)
    for factor in options.factors:
        widening = Widening.of(narrow.config.hidden_size, factor)
        target = widened(narrow, widening)
        traces = [widening.trace(trace) for trace in recorded]
        for seed, rate, slots in itertools.product(options.seeds, options.rates, options.slots):
            key = (settings, target.config.hidden_size, rate, slots, seed)
            if key in done:
                continue
            recipe = Recipe(learning_rate=rate, batch_slots=slots, replay=options.replay)
            lengths, seconds = learn(target, vocabulary, recipe, traces, seed)
            runs.append(Run(*key, lengths, seconds))
            print(runs[-1], flush=True)
            _save(options.out, runs)
    shown = sorted((run for run in runs if run.settings == settings), key=lambda run: run.key)
    print(f"\n{settings}, {machine()}, commit {commit()}\n")
    print(table(shown))


if __name__ == "__main__":
    main()
