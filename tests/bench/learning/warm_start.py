"""Over how many steps should the learning rate rise when training goes on from a published head?

A head learns from the first half of the recorded JSON-extraction requests. It is written as a checkpoint in bf16, as a
published head is, and read again: the weights without moments. Training then goes on, with fresh requests first and
replayed ones beside and after them, as the trainer does while it waits for traffic:

- ``json``: on the second half of the requests. The traffic is what the head was trained on.
- ``docstrings``: on requests of another domain. The traffic is not what the head was trained on.

Every run is evaluated on held-out requests after a few steps, so that a loss at the start and the recovery show.
``docstrings`` is also evaluated on JSON, which shows forgetting. Runs with one seed see the same batches, and differ
in the steps of the warm-up only. The vocabulary map stays the head's.

Prints the acceptance lengths of every run, and a table of means and standard deviations over the seeds. Needs a CPU
only.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from tests.assets.traces.recorded import domain_traces, json_traces
from tests.assets.trained_draft import load_small_target, untrained_draft
from tests.bench.bench_command import bench_parser, measuring
from tests.bench.learning.configurations import DRAFT_STEPS
from tests.bench.learning.curve import mean_and_deviation
from tests.bench.learning.learner import REPLAY_BUFFER_BYTES
from tests.bench.learning.matching import Match, batches
from tests.bench.markdown import markdown_table
from tests.traffic.prompts import Domain

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.target.target_model import TargetModel

JSON, DOCSTRINGS = "json", "docstrings"
HEAD_STEPS: Final = 128
"""Steps that train the published head."""

Lengths = dict[str, list[float]]
"""Held-out domain -> the acceptance lengths of a run, in the order of the evaluations."""


def training_batches(session: Session, examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Endless batches: fresh ``examples`` with their replays, and then only replays."""
    replay_buffer, recipe = ReplayBuffer(REPLAY_BUFFER_BYTES), session.recipe
    replay_buffer.add(examples)
    yield from batches(Match.TRAFFIC, examples, replay_buffer, recipe, session.generator)
    while True:
        yield replay_buffer.sample(recipe.batch_slots, session.generator, recipe.replay_sampling)


def write_head(examples: Sequence[Example], folder: Path) -> None:
    """Train an untrained draft on ``examples``, and write its averaged weights as a checkpoint."""
    session = Session(*untrained_draft(), Recipe(), torch.device("cpu"))
    for batch in itertools.islice(training_batches(session, examples), HEAD_STEPS):
        session.step(batch)
    checkpoint.export(session.served, session.vocabulary.to_target, folder)


def session_from_head(folder: Path, target: TargetModel, warmup_steps: int, seed: int) -> Session:
    """A session that starts from the head in ``folder``, without moments."""
    draft, ids = checkpoint.load(folder, target.embedding)
    vocabulary = VocabularyMap.of(ids, target.identity.vocab_size)
    session = Session(draft, vocabulary, dataclasses.replace(Recipe(), warmup_steps=warmup_steps), torch.device("cpu"))
    session.generator.manual_seed(seed)
    return session


def go_on(
    session: Session, examples: Sequence[Example], held_out: Mapping[str, Sequence[Example]], steps: Sequence[int]
) -> Lengths:
    """Train on ``examples``, and evaluate the weights that would be served after each of ``steps``."""
    lengths: Lengths = {domain: [] for domain in held_out}
    for batch in itertools.islice(training_batches(session, examples), max(steps)):
        session.step(batch)
        if session.steps in steps:
            for domain, evaluated in held_out.items():
                lengths[domain].append(acceptance_length(session, evaluated))
    return lengths


def acceptance_length(session: Session, held_out: Sequence[Example]) -> float:
    """The acceptance length of the weights that would be served."""
    return evaluate(session.served, held_out, session.vocabulary, DRAFT_STEPS).acceptance_length


def table(
    at_start: Mapping[str, float], steps: Sequence[int], runs: Mapping[tuple[str, int], Sequence[Lengths]]
) -> str:
    """One row per traffic, held-out domain and warm-up. The last column compares the means of all evaluations.

    Args:
        at_start: the head's acceptance length in each held-out domain.
        steps: the optimizer steps after which the runs were evaluated.
        runs: a run for each seed, by traffic and steps of the warm-up.
    """
    head = ["traffic", "held out", "warm-up steps", "head", *(f"after {n}" for n in steps)]
    shortest = min(warmup for _, warmup in runs)
    rows = []
    for (traffic, warmup), seeds in runs.items():
        for domain in seeds[0]:
            own = [each[domain] for each in seeds]
            pairs = zip(own, (each[domain] for each in runs[traffic, shortest]), strict=True)
            gains = [statistics.fmean(a) - statistics.fmean(b) for a, b in pairs]
            cells = [mean_and_deviation(values) for values in zip(*own, strict=True)]
            rows.append([traffic, domain, warmup, f"{at_start[domain]:.2f}", *cells, mean_and_deviation(gains, 3)])
    return markdown_table([*head, f"mean, against {shortest} steps"], rows)


def main() -> None:
    parser = bench_parser("tests.bench.learning.warm_start", __doc__)
    parser.add_argument("--traffic", nargs="+", choices=(JSON, DOCSTRINGS), default=[JSON, DOCSTRINGS], help="traffic")
    parser.add_argument("--warmups", nargs="+", type=int, default=[10, 25, 50, 100], help="steps of the warm-up")
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 16, 32, 64, 128], help="steps before evaluations")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="orders of the requests")
    options = parser.parse_args()
    target = load_small_target()

    def examples(traces: Sequence[RequestTrace], *, held_out: bool) -> list[Example]:
        chosen = (trace for trace in traces if trace.held_out == held_out)
        return [each for trace in chosen for each in examples_of(trace, target.identity.vocab_size)]

    traces = {JSON: json_traces()}
    if DOCSTRINGS in options.traffic:
        traces[DOCSTRINGS] = domain_traces(Domain.DOCSTRINGS)
    held_out = {domain: examples(each, held_out=True) for domain, each in traces.items()}
    fresh = {domain: examples(each, held_out=False) for domain, each in traces.items()}
    middle = len(fresh[JSON]) // 2
    runs = dict[tuple[str, int], list[Lengths]]()
    with measuring("tests.bench.learning.warm_start") as measurement:
        write_head(fresh[JSON][:middle], measurement.folder)
        head = session_from_head(measurement.folder, target, min(options.warmups), seed=0)
        at_start = {domain: acceptance_length(head, each) for domain, each in held_out.items()}
        print(f"head: {at_start}", flush=True)
        fresh[JSON] = fresh[JSON][middle:]
        for seed in options.seeds:
            for traffic in options.traffic:
                for warmup in options.warmups:
                    session = session_from_head(measurement.folder, target, warmup, seed)
                    evaluated = {domain: held_out[domain] for domain in dict.fromkeys((traffic, JSON))}
                    lengths = go_on(session, fresh[traffic], evaluated, options.steps)
                    runs.setdefault((traffic, warmup), []).append(lengths)
                    shown = {domain: [round(length, 3) for length in each] for domain, each in lengths.items()}
                    print(f"seed {seed}, {traffic}, warm-up {warmup}: {shown}", flush=True)
    print(f"\n{table(at_start, options.steps, runs)}\n\n{measurement.origin}")


if __name__ == "__main__":
    main()
