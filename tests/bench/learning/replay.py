"""One run: recorded requests through one configuration, looked at on held-out requests on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.learning.configurations import Configuration
from tests.bench.learning.learner import Learner, Look
from tests.bench.learning.matching import Match
from tests.bench.learning.recorded import Traffic

from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model import checkpoint

LOOKS: Final = 8
"""Evaluations per run, evenly over the traffic, after the one before its first step."""


@dataclass(frozen=True)
class Run:
    """A configuration with one seed on one kind of traffic."""

    traffic: str
    match: Match
    configuration: str
    seed: int
    looks: tuple[Look, ...]
    positions: int  # trained, every repetition counted
    cpu_seconds: float  # of training alone


def fresh_traffic(traces: Sequence[RequestTrace], tokens: int | None) -> list[RequestTrace]:
    """The training side, up to ``tokens`` answer tokens."""
    taken, count = list[RequestTrace](), 0
    for trace in traces:
        if not trace.held_out and (tokens is None or count < tokens):
            taken.append(trace)
            count += trace.answer_tokens
    return taken


def run(
    traffic: Traffic,
    name: str,
    how: Configuration,
    match: Match,
    seed: int,
    tokens: int | None,
    kept: Path | None = None,
) -> Run:
    """Train a day-0 draft on ``traffic`` as ``how`` says; the draft of look ``n`` is exported to ``kept/n``."""
    learner = Learner.from_day_0(how, match, seed)
    traces = traffic.traces[how.shape]
    held_out, fresh = learner.held_out(traces), fresh_traffic(traces, tokens)
    looks, answers, cpu = list[Look](), 0, 0.0

    def look() -> None:
        if kept:
            checkpoint.export(learner.draft, learner.session.vocabulary.to_target, kept / str(len(looks)))
        looks.append(learner.look(held_out, answers))

    look()
    for part in range(LOOKS):
        shard = fresh[len(fresh) * part // LOOKS : len(fresh) * (part + 1) // LOOKS]
        began = time.process_time()
        learner.learn(shard, held_out)
        cpu += time.process_time() - began
        answers += sum(t.answer_tokens for t in shard)
        look()
    return Run(traffic.name, match, name, seed, tuple(looks), learner.session.trained_positions, cpu)
