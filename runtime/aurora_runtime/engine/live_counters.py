"""Reads counters of speculation from the text of SGLang's ``/metrics``. Pure.

SGLang counts answer tokens, verify calls and requests when a request ends. It counts neither proposed nor accepted
draft tokens: this module alone derives them.
"""

from __future__ import annotations

import math
import re

from aurora_protocol.agent_api import MAX_COUNT, LiveCounters

_GAP_HISTOGRAM = "sglang:request_time_per_output_token_seconds"
"""Holds one value per request that ended by itself: the request's mean time between answer tokens. Requests are counted
instead of tokens, because the gaps within one request resemble each other."""
OVERFLOW_SECONDS = 60.0
"""The time between tokens that is assumed for a value beyond the histogram's last edge."""
_BUCKET_EDGE = re.compile(r'[{,]le="([^"]+)"')


def parse_counters(text: str) -> dict[str, float]:
    """The value of each counter in Prometheus text, by the counter's name. The series of a counter are summed."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name = line.split("{", 1)[0].split(" ", 1)[0]
        try:
            sums[name] = sums.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        except (IndexError, ValueError):
            continue
    return sums


def sum_of_squares_bound(text: str, histogram: str) -> float:
    """Upper bound of the sum of squares of the values in a Prometheus ``histogram``, in its unit squared.

    Each value counts as the upper edge of its bucket, or as :data:`OVERFLOW_SECONDS` beyond the last edge. So the
    difference between the bounds of two readings bounds the values that came between the readings. The bound holds for
    values up to :data:`OVERFLOW_SECONDS`.
    """
    cumulative: dict[float, float] = {}
    prefix = f"{histogram}_bucket{{"
    for line in text.splitlines():
        match = _BUCKET_EDGE.search(line) if line.startswith(prefix) else None
        if match is not None:
            edge = float(match[1])
            cumulative[edge] = cumulative.get(edge, 0.0) + float(line.rsplit(" ", 1)[1])
    total, previous_count = 0.0, 0.0
    for edge, count in sorted(cumulative.items()):
        total += (count - previous_count) * min(edge, OVERFLOW_SECONDS) ** 2
        previous_count = count
    return total


def live_counters(text: str, draft_tokens: int) -> LiveCounters:
    """Counters of speculation since the engine's start, from the ``text`` of SGLang's ``/metrics``.

    A verify round proposes ``draft_tokens - 1`` tokens. The first answer token comes from the prefill, and each round
    adds its accepted tokens and one bonus token. A request cut short by its end token makes the count of accepted
    tokens a little too low.
    """
    sums = parse_counters(text)
    requests = int(sums.get("sglang:num_requests_total", 0))
    tokens = int(sums.get("sglang:generation_tokens_total", 0))
    rounds = int(sums.get("sglang:spec_verify_calls_total", 0))
    counted = {
        "requests": requests,
        "answer_tokens": tokens,
        "verify_rounds": rounds,
        "proposed": rounds * (draft_tokens - 1),
        "accepted": max(0, tokens - requests - rounds),
        "gap_milliseconds": round(1000 * sums.get(f"{_GAP_HISTOGRAM}_sum", 0.0)),
        "gaps": int(sums.get(f"{_GAP_HISTOGRAM}_count", 0)),
        "gap_squares": math.ceil(1e6 * sum_of_squares_bound(text, _GAP_HISTOGRAM)),
    }
    return LiveCounters.model_validate({name: min(count, MAX_COUNT) for name, count in counted.items()})
