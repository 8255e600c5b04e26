"""The traffic of the comparison: the same answers with the rounds of each kind of draft, and how much they repeat."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.assets.model import ensure_model
from tests.assets.traces.drafted import drafted_traces
from tests.traffic.report import distinct_share

from aurora_runtime.traces import RequestTrace


@dataclass(frozen=True)
class Traffic:
    """Recorded requests of one kind, by the shape of their rounds (tests/assets/traces/drafted.py)."""

    name: str
    traces: Mapping[str, Sequence[RequestTrace]]
    distinct_4grams: float  # mean share in an answer: near 0 it loops, and looping text is easy to draft


def recorded(name: str, requests: int, shapes: Iterable[str]) -> Traffic:
    """The first ``requests`` of a kind, with rounds of all ``shapes``; recorded now if they never were."""
    traces = {shape: drafted_traces(name, requests, shape) for shape in shapes}
    return Traffic(name, traces, distinct_4grams(next(iter(traces.values()))))


def distinct_4grams(traces: Sequence[RequestTrace]) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ensure_model())
    answers = (tokenizer.decode(t.tokens[t.prompt_length :].tolist(), skip_special_tokens=True) for t in traces)
    return statistics.fmean(share for answer in answers if (share := distinct_share(answer)) is not None)
