"""The engine's requests, read from SGLang's metrics."""

from __future__ import annotations

from aurora_protocol.agent_api import MAX_COUNT
from aurora_runtime.engine.sglang_client import EngineTraffic, engine_traffic

ENDED = """# TYPE sglang:num_requests_total counter
sglang:num_requests_total{engine_type="unified",is_streaming="false",model_name="/m"} 6.0
sglang:num_requests_total{engine_type="unified",is_streaming="true",model_name="/m"} 2.0
sglang:e2e_request_latency_seconds_bucket{le="+Inf"} NaN
"""
RUNNING, QUEUED = 'sglang:num_running_reqs{model_name="/m"} 7.0\n', 'sglang:num_queue_reqs{model_name="/m"} 2.0\n'


def test_requests_that_ended_and_those_that_run_and_wait_are_counted() -> None:
    assert engine_traffic(ENDED + RUNNING + QUEUED) == EngineTraffic(ended=8, now=9)
    assert engine_traffic("") == EngineTraffic(ended=0, now=None)
    assert engine_traffic(RUNNING).now is None


def test_no_count_exceeds_the_limit_of_the_agent_api() -> None:
    assert engine_traffic(RUNNING + 'sglang:num_queue_reqs{a="b"} 1e300\n').now == MAX_COUNT
