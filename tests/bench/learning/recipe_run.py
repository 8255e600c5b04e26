"""One run: an untrained draft learns from recorded traffic by one configuration, and is evaluated several times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.learning.configurations import Configuration
from tests.bench.learning.learner import Evaluation, Learner
from tests.bench.learning.matching import Match
from tests.bench.learning.recorded_traffic import RecordedTraffic

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model import checkpoint

EVALUATIONS: Final = 8
"""Evaluations per run, evenly spaced over the traffic. One more comes before the first step."""


@dataclass(frozen=True)
class RecipeRun:
    """The outcome of one configuration with one seed on one kind of traffic.

    Attributes:
        positions: trained positions, every repetition counted.
        cpu_seconds: CPU time of training, without the evaluations.
    """

    traffic: str
    match: Match
    configuration: str
    seed: int
    evaluations: tuple[Evaluation, ...]
    positions: int
    cpu_seconds: float


def fresh_traffic(traces: Sequence[RequestTrace], tokens: int | None) -> list[RequestTrace]:
    """The requests to train on: not held out, until they hold ``tokens`` answer tokens (None: all)."""
    taken, count = list[RequestTrace](), 0
    for trace in traces:
        if not trace.held_out and (tokens is None or count < tokens):
            taken.append(trace)
            count += trace.answer_tokens
    return taken


def run_recipe(
    traffic: RecordedTraffic,
    name: str,
    configuration: Configuration,
    match: Match,
    seed: int,
    tokens: int | None,
    checkpoints: Path | None = None,
) -> RecipeRun:
    """Train an untrained draft on ``traffic``, and evaluate it before, between and after :data:`EVALUATIONS` shards.

    Args:
        name: the configuration's name.
        tokens: answer tokens of traffic (None: all).
        checkpoints: the folder to which the draft of every evaluation is written, as ``<number of the evaluation>/``.
    """
    learner = Learner.untrained(configuration, match, seed)
    traces = traffic.traces
    held_out, fresh = learner.held_out(traces), fresh_traffic(traces, tokens)
    evaluations, answer_tokens, cpu_seconds = list[Evaluation](), 0, 0.0

    def evaluate() -> None:
        if checkpoints:
            folder = checkpoints / str(len(evaluations))
            checkpoint.export(learner.draft, learner.session.vocabulary.to_target, folder)
        evaluations.append(learner.evaluate(held_out, answer_tokens))

    evaluate()
    for part in range(EVALUATIONS):
        shard = fresh[len(fresh) * part // EVALUATIONS : len(fresh) * (part + 1) // EVALUATIONS]
        began = time.process_time()
        learner.learn(shard, held_out)
        cpu_seconds += time.process_time() - began
        answer_tokens += sum(t.answer_tokens for t in shard)
        evaluate()
    return RecipeRun(
        traffic.name, match, name, seed, tuple(evaluations), learner.session.trained_positions, cpu_seconds
    )
