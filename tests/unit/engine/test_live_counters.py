"""Counters of speculation, read from SGLang's metrics."""

from __future__ import annotations

from aurora_protocol.agent_api import MAX_COUNT, LiveCounters
from aurora_runtime.engine.sglang_client import live_counters, requests_now


def test_live_counters_are_read_from_sglangs_metrics() -> None:
    text = """# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{engine_type="unified",is_streaming="false",model_name="/m"} 100.0
sglang:generation_tokens_total{engine_type="unified",is_streaming="true",model_name="/m"} 56.0
sglang:spec_verify_calls_total{engine_type="unified",model_name="/m"} 90.0
sglang:num_requests_total{engine_type="unified",is_streaming="false",model_name="/m"} 6.0
sglang:e2e_request_latency_seconds_bucket{le="+Inf"} NaN
"""
    assert live_counters(text, 4) == LiveCounters(
        requests=6, answer_tokens=156, verify_rounds=90, proposed=270, accepted=60
    )
    assert live_counters("", 4) == LiveCounters()


def test_requests_that_run_and_wait_are_in_the_engine_now() -> None:
    running, queued = 'sglang:num_running_reqs{model_name="/m"} 7.0\n', 'sglang:num_queue_reqs{model_name="/m"} 2.0\n'
    assert requests_now(running + queued) == 9
    assert requests_now(running) is None


def test_no_counter_exceeds_the_limit_of_the_agent_api() -> None:
    text = 'sglang:num_requests_total{a="b"} 1e300\n'
    assert live_counters(text, 4).requests == MAX_COUNT
