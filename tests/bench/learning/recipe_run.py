"""One run: an untrained draft learns from recorded traffic by one configuration, and is evaluated several times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.assets.model import ensure_model
from tests.assets.traces.drafted import drafted_traces
from tests.bench.learning.configurations import Configuration
from tests.bench.learning.learner import Evaluation, Learner
from tests.bench.learning.matching import Match
from tests.traffic.report import distinct_share

from aurora_runtime.traces import RequestTrace

EVALUATIONS: Final = 8
"""Evaluations per run, evenly spaced over the traffic. One more comes before the first step."""


@dataclass(frozen=True)
class RecordedTraffic:
    """Recorded requests of one domain.

    Attributes:
        distinct_4grams: mean share of distinct 4-grams in an answer. Near 0 the answers loop, and looping text is easy
            to draft.
    """

    name: str
    traces: Sequence[RequestTrace]
    distinct_4grams: float


def load_traffic(name: str, requests: int) -> RecordedTraffic:
    """The first ``requests`` of a domain. The first call on a machine records them."""
    traces = drafted_traces(name, requests)
    return RecordedTraffic(name, traces, distinct_4grams(traces))


def distinct_4grams(traces: Sequence[RequestTrace]) -> float:
    """The mean share of distinct 4-grams in an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ensure_model())
    answers = (tokenizer.decode(t.tokens[t.prompt_length :].tolist(), skip_special_tokens=True) for t in traces)
    return statistics.fmean(share for answer in answers if (share := distinct_share(answer)) is not None)


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
) -> RecipeRun:
    """Train an untrained draft on ``traffic``, and evaluate it before, between and after :data:`EVALUATIONS` shards.

    Args:
        name: the configuration's name.
        tokens: answer tokens of traffic (None: all).
    """
    learner = Learner.untrained(configuration, match, seed)
    traces = traffic.traces
    held_out, fresh = learner.held_out(traces), fresh_traffic(traces, tokens)
    evaluations, answer_tokens, cpu_seconds = list[Evaluation](), 0, 0.0

    def evaluate() -> None:
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
