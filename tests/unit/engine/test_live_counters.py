"""Counters of speculation, read from SGLang's metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_protocol.agent_api import MAX_COUNT, LiveCounters
from aurora_runtime.engine.live_counters import live_counters, sum_of_squares_bound


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


EDGES = (0.1, 0.5, 2.0, float("inf"))


def histogram(values: list[float]) -> str:
    """A histogram in the text of prometheus_client, in two series."""
    lines = []
    for stream, part in (("true", values[::2]), ("false", values[1::2])):
        for edge in EDGES:
            name = "+Inf" if edge == EDGES[-1] else str(edge)
            count = float(sum(v <= edge for v in part))
            lines.append(f'h_seconds_bucket{{is_streaming="{stream}",le="{name}",model_name="/m"}} {count}')
        lines.append(f'h_seconds_sum{{is_streaming="{stream}",model_name="/m"}} {sum(part)!r}')
    return "\n".join(lines)


VALUES = st.lists(st.floats(0.001, 30.0), max_size=20)


@given(VALUES, VALUES)
def test_the_bound_of_squares_holds_for_all_values_and_for_later_values_alone(
    first: list[float], later: list[float]
) -> None:
    before, after = (
        sum_of_squares_bound(histogram(first), "h_seconds"),
        sum_of_squares_bound(histogram(first + later), "h_seconds"),
    )
    assert before >= sum(v * v for v in first) * (1 - 1e-9)
    assert after - before >= sum(v * v for v in later) * (1 - 1e-9) - 1e-6


def test_one_value_beyond_the_last_edge_does_not_inflate_later_differences() -> None:
    before, after = (
        sum_of_squares_bound(histogram([*values]), "h_seconds") for values in ([9.0] * 3, [9.0] * 3 + [0.4] * 100)
    )
    assert after - before == pytest.approx(100 * 0.25)


def test_no_counter_exceeds_the_limit_of_the_agent_api() -> None:
    text = 'sglang:num_requests_total{a="b"} 1e300\n'
    assert live_counters(text, 4).requests == MAX_COUNT


def test_the_bound_is_tight_within_a_bucket() -> None:
    assert sum_of_squares_bound(histogram([0.05, 0.4, 0.4]), "h_seconds") == pytest.approx(0.01 + 2 * 0.25)
    text = """sglang:request_time_per_output_token_seconds_bucket{is_streaming="true",le="0.02"} 3.0
sglang:request_time_per_output_token_seconds_bucket{is_streaming="true",le="+Inf"} 3.0
sglang:request_time_per_output_token_seconds_count{is_streaming="true"} 3.0
sglang:request_time_per_output_token_seconds_sum{is_streaming="true"} 0.045
"""
    counters = live_counters(text, 4)
    assert (counters.gaps, counters.gap_milliseconds, counters.gap_squares) == (3, 45, 1200)
