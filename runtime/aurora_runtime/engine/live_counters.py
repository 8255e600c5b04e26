"""Reads counters of speculation and the load from the text of SGLang's ``/metrics``. Pure.

SGLang counts answer tokens, verify calls and requests when a request ends. It counts neither proposed nor accepted
draft tokens: this module alone derives them.
"""

from __future__ import annotations

from aurora_protocol.agent_api import MAX_COUNT, LiveCounters


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


def requests_now(text: str) -> int | None:
    """Requests that run or wait in the engine, as SGLang reported last. None: the ``text`` does not say."""
    sums = parse_counters(text)
    counts = [sums.get(f"sglang:{name}") for name in ("num_running_reqs", "num_queue_reqs")]
    return None if None in counts else min(int(sum(count or 0.0 for count in counts)), MAX_COUNT)


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
    }
    return LiveCounters.model_validate({name: min(count, MAX_COUNT) for name, count in counted.items()})
