"""What SGLang's own metrics say of speculation: pure, on the text of its ``/metrics``.

SGLang counts answer tokens, verify calls and requests when a request ends, and neither proposals nor acceptances: those
are derived here, and only here.
"""

from __future__ import annotations

from aurora_api.agent import LiveCounters


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


def live_counters(text: str, draft_tokens: int) -> LiveCounters:
    """Speculation since the engine's start.

    A round proposes ``draft_tokens - 1``; the first answer token comes from the prefill, and each round adds its
    accepted drafts and one bonus token. A request cut short by its end token makes the estimate a little low.
    """
    sums = parse_counters(text)
    requests = int(sums.get("sglang:num_requests_total", 0))
    tokens = int(sums.get("sglang:generation_tokens_total", 0))
    rounds = int(sums.get("sglang:spec_verify_calls_total", 0))
    return LiveCounters(
        requests=requests,
        aborted=int(sums.get("sglang:num_aborted_requests_total", 0)),
        answer_tokens=tokens,
        verify_rounds=rounds,
        proposed=rounds * (draft_tokens - 1),
        accepted=max(0, tokens - requests - rounds),
        gap_milliseconds=round(1000 * sums.get("sglang:inter_token_latency_seconds_sum", 0.0)),
        gaps=int(sums.get("sglang:inter_token_latency_seconds_count", 0)),
    )
