"""The agent's Prometheus metrics. Numbers only: no prompt, no token, no key, no user's name.

Invariant: a counter that the engine holds has no sample while the engine serves nobody. A sample of 0 would look like a
restart, and the next true sample would look like as much new traffic as the engine ever had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aurora_protocol.agent_api import AgentState, CaptureCounters, LiveCounters
from aurora_runtime.serving.agent.uploader import SpoolState
from aurora_runtime.serving.pod_files import MAX_SPOOL_BYTES, SpeculationState

SWAP_RESULTS: Final = ("success", "failure")
LOSS_REASONS: Final = (
    *("queue", "hook", "memory", "gap", "order", "path", "long_prompt"),
    *("spool", "damaged", "shutdown"),
)
"""Results and reasons with a series before the first of them: ``increase`` does not see a new series' first value."""
PAUSE_BUCKETS_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True)
class CaptureFigures:
    """What the metrics show of trace capture beyond the counters of :class:`AgentState`."""

    losses: Mapping[str, int] = field(default_factory=dict)
    """What was lost, by reason."""
    uploaded_bytes: int = 0
    failed_uploads: int = 0
    """Attempts to upload that the store, or the spool, ended."""
    spool: SpoolState = field(default_factory=SpoolState)


def _live_metrics(live: LiveCounters) -> Iterable[Metric]:
    """The engine's traffic."""
    for name, help_text, value in (
        ("requests", "Requests that ended after a verify round since the engine started.", live.requests),
        ("answer_tokens", "Answer tokens of these requests, without the first of each answer.", live.tokens),
        ("verify_rounds", "Verify rounds of these requests. A round without proposals counts.", live.rounds),
    ):
        yield CounterMetricFamily(f"aurora_agent_{name}", help_text, value)


def _capture_metrics(capture: CaptureCounters, figures: CaptureFigures) -> Iterable[Metric]:
    """Traces from the engine to the store, and what was lost on the way."""
    for name, help_text, value in (
        ("captured_records", "Prompts and verify rounds captured for traces.", capture.captured_records),
        ("dropped_records", "Prompts and verify rounds lost before they became traces.", capture.dropped_records),
        ("captured_answer_tokens", "Answer tokens in traces.", capture.answer_tokens),
        ("uploaded_shards", "Shards uploaded to the store.", capture.shards_uploaded),
        ("uploaded_bytes", "Bytes of the shards uploaded to the store.", figures.uploaded_bytes),
        ("upload_failures", "Attempts to upload that failed and are repeated.", figures.failed_uploads),
        ("dropped_shards", "Shards deleted before their upload.", capture.shards_dropped),
    ):
        yield CounterMetricFamily(f"aurora_agent_{name}", help_text, value)
    losses = CounterMetricFamily("aurora_agent_losses", "What trace capture lost, by reason.", labels=["reason"])
    for reason, count in sorted({**dict.fromkeys(LOSS_REASONS, 0), **figures.losses}.items()):
        losses.add_metric([reason], count)
    yield losses


def _spool_metrics(spool: SpoolState) -> Iterable[Metric]:
    """What waits for its upload."""
    for name, help_text, value in (
        ("spool_bytes", "Bytes of the shards that wait for their upload.", sum(spool.shard_bytes)),
        ("spool_oldest_shard_seconds", "Age of the oldest shard that waits for its upload.", spool.oldest_seconds),
        ("spool_limit_bytes", "Bytes in the spool above which the oldest shard is dropped.", MAX_SPOOL_BYTES),
        ("spool_free_bytes", "Free bytes of the file system of the spool.", spool.free_bytes),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"aurora_agent_{name}", help_text, value)


def _speculation_metrics(speculation: SpeculationState) -> Iterable[Metric]:
    """The decisions and measurements of the speculation controller."""
    help_text = "Decode rounds of the batch since the engine started, by arm: off, or the source and the steps."
    rounds = CounterMetricFamily("aurora_agent_decode_rounds", help_text, labels=["arm"])
    for arm, count in sorted(speculation.rounds_by_arm.items()):
        rounds.add_metric([arm], count)
    yield rounds
    yield from _position_metrics(speculation)
    if speculation.speedup_over_off is not None:
        help_text = (
            "Estimated throughput relative to the engine's own rounds without proposals. A pod that hardly proposed was"
            " 4 to 13 % slower than an engine without speculation (small model on a CPU), so a value near 1 may hide a"
            " loss."
        )
        yield GaugeMetricFamily("aurora_agent_estimated_speedup", help_text, speculation.speedup_over_off)


def _position_metrics(speculation: SpeculationState) -> Iterable[Metric]:
    """Tokens by source and by their position in the chain, from 1."""
    labels = ["source", "position"]
    help_text = "Proposed tokens since the engine started, by source and by position in the chain, from 1."
    proposed = CounterMetricFamily("aurora_agent_proposed_tokens", help_text, labels=labels)
    help_text = "Accepted tokens since the engine started, by source and by position in the chain, from 1."
    accepted = CounterMetricFamily("aurora_agent_accepted_tokens", help_text, labels=labels)
    for source, counters in (("draft", speculation.draft), ("lookup", speculation.lookup)):
        for family, counts in ((proposed, counters.proposed_at), (accepted, counters.accepted_at)):
            for position, count in enumerate(counts, 1):
                family.add_metric([source, str(position)], count)
    yield proposed
    yield accepted


class Metrics(Collector):
    """The metrics of one agent."""

    def __init__(self) -> None:
        self._shown: tuple[AgentState, SpeculationState | None, CaptureFigures] | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._swaps = Counter(
            "aurora_agent_swaps", "Swaps by result: success or failure.", ["result"], registry=self._registry
        )
        for result in SWAP_RESULTS:
            self._swaps.labels(result)
        self._pauses = Histogram(
            "aurora_agent_swap_pause_seconds",
            "Seconds for which a swap paused generation.",
            buckets=PAUSE_BUCKETS_SECONDS,
            registry=self._registry,
        )

    def record_swap(self, result: str, pause_seconds: float | None) -> None:
        """Count a swap. ``result`` is ``success`` or ``failure``. ``pause_seconds`` is None for a failure."""
        self._swaps.labels(result).inc()
        if pause_seconds is not None:
            self._pauses.observe(pause_seconds)

    def render(
        self,
        state: AgentState,
        speculation: SpeculationState | None = None,
        figures: CaptureFigures | None = None,
    ) -> bytes:
        """The text of ``/metrics``: ``state``, the speculation controller if there is one, and trace capture."""
        self._shown = (state, speculation, figures or CaptureFigures())
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        if self._shown is None:
            return
        state, speculation, figures = self._shown
        yield GaugeMetricFamily("aurora_agent_engine_ready", "1 if the pod takes requests, else 0.", state.engine_ready)
        if state.version is not None:
            help_text = "Version of the draft that the engine holds. Absent while there is none."
            yield GaugeMetricFamily("aurora_agent_draft_version", help_text, state.version)
        if state.engine_ready:
            yield from _live_metrics(state.live)
        yield from _capture_metrics(state.capture, figures)
        yield from _spool_metrics(figures.spool)
        if speculation is not None:
            yield from _speculation_metrics(speculation)
