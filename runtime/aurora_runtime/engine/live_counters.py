"""What SGLang's own metrics say of speculation: pure, on the text of its ``/metrics``.

SGLang counts answer tokens, verify calls and requests when a request ends, and neither proposals nor acceptances: those
are derived here, and only here.
"""

from __future__ import annotations

import math
import re

from aurora_protocol.agent_api import MAX_COUNT, LiveCounters

_PACE = "sglang:request_time_per_output_token_seconds"
"""One value per request that ended by itself: tokens of one request resemble each other, so requests are counted."""
BEYOND = 60.0
"""Seconds between tokens that a value after a histogram's last edge counts as."""
_EDGE = re.compile(r'[{,]le="([^"]+)"')


def parse_counters(text: str) -> dict[str, float]:
    """Sum of each counter's series in Prometheus text, by name."""
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


def squares(text: str, histogram: str) -> float:
    """Upper bound of the sum of squares of what a Prometheus ``histogram`` observed, in its unit squared.

    A value counts as its bucket's upper edge, and as :data:`BEYOND` after the last edge, so a difference of the bound
    is a bound for what came between. It holds for values up to :data:`BEYOND`.
    """
    below: dict[float, float] = {}
    start = f"{histogram}_bucket{{"
    for line in text.splitlines():
        found = _EDGE.search(line) if line.startswith(start) else None
        if found is not None:
            edge = float(found[1])
            below[edge] = below.get(edge, 0.0) + float(line.rsplit(" ", 1)[1])
    total, former = 0.0, 0.0
    for edge, count in sorted(below.items()):
        total += (count - former) * min(edge, BEYOND) ** 2
        former = count
    return total


def live_counters(text: str, draft_tokens: int) -> LiveCounters:
    """Speculation since the engine's start.

    A round proposes ``draft_tokens - 1``; the first answer token comes from the prefill, and each round adds its
    accepted drafts and one bonus token. A request cut short by its end token makes the estimate a little low.
    """
    sums = parse_counters(text)
    requests = int(sums.get("sglang:num_requests_total", 0))
    tokens = int(sums.get("sglang:generation_tokens_total", 0))
    rounds = int(sums.get("sglang:spec_verify_calls_total", 0))
    counted = {
        "requests": requests,
        "aborted": int(sums.get("sglang:num_aborted_requests_total", 0)),
        "answer_tokens": tokens,
        "verify_rounds": rounds,
        "proposed": rounds * (draft_tokens - 1),
        "accepted": max(0, tokens - requests - rounds),
        "gap_milliseconds": round(1000 * sums.get(f"{_PACE}_sum", 0.0)),
        "gaps": int(sums.get(f"{_PACE}_count", 0)),
        "gap_squares": math.ceil(1e6 * squares(text, _PACE)),
    }
    return LiveCounters(**{name: min(count, MAX_COUNT) for name, count in counted.items()})
