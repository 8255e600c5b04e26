"""The agent's Prometheus metrics. Numbers only: no prompt, no token, no key, no user's name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aurora_protocol.agent_api import AgentState

PAUSES_S: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class _StateCollector(Collector):
    """Turns the last observed state into samples."""

    def __init__(self) -> None:
        self.state: AgentState | None = None

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        state = self.state
        if state is None:
            return
        yield GaugeMetricFamily("aurora_engine_ready", "Whether the engine takes requests.", state.engine_ready)
        if state.version is not None:
            yield GaugeMetricFamily("aurora_draft_version", "Draft version that the engine holds.", state.version)
        live, capture = state.live, state.capture
        for name, text, value in (
            ("aurora_requests", "Requests answered by this engine.", live.requests),
            ("aurora_answer_tokens", "Answer tokens generated.", live.answer_tokens),
            ("aurora_verify_rounds", "Verify rounds.", live.verify_rounds),
            ("aurora_draft_tokens_proposed", "Draft tokens proposed.", live.proposed),
            ("aurora_draft_tokens_accepted", "Draft tokens accepted.", live.accepted),
            ("aurora_captured_records", "Prompts and verify rounds captured.", capture.captured_records),
            ("aurora_dropped_records", "Prompts and verify rounds lost.", capture.dropped_records),
            ("aurora_captured_answer_tokens", "Answer tokens in traces.", capture.answer_tokens),
            ("aurora_shards_uploaded", "Shards uploaded.", capture.shards_uploaded),
            ("aurora_shards_dropped", "Shards dropped before their upload.", capture.shards_dropped),
        ):
            yield CounterMetricFamily(name, text, value)


class Metrics:
    """One registry per agent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._states = _StateCollector()
        self._registry.register(self._states)
        self._swaps = Counter("aurora_swaps", "Swaps, by result.", ["result"], registry=self._registry)
        self._pauses = Histogram(
            "aurora_swap_pause_seconds",
            "How long a swap paused generation.",
            buckets=PAUSES_S,
            registry=self._registry,
        )

    def swap_finished(self, result: str, pause: float | None) -> None:
        self._swaps.labels(result).inc()
        if pause is not None:
            self._pauses.observe(pause)

    def render(self, state: AgentState) -> bytes:
        self._states.state = state
        return generate_latest(self._registry)
