"""The traffic of the comparison: recorded answers, with the verify rounds that a draft would cause."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.assets.model import ensure_model
from tests.assets.traces.drafted import drafted_traces
from tests.traffic.report import distinct_share

from aurora_runtime.traces import RequestTrace


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
