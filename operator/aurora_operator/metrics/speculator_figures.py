"""Prometheus metrics of each speculator, from its status and from the trainer's last record.

Why a collector and not one object per series: a speculator has about forty series, and an operator may have a thousand
speculators. The collector keeps the few values of each and makes the series when Prometheus asks.

Invariants: a value that is not known has no series. A figure in the status that cannot be parsed counts as not known,
because a metric must never make a reconcile fail. A speculator's first scrape shows all counters of decisions at 0,
because PromQL's ``increase`` does not see the first value of a new series.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, SpeculatorStatus
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.conditions.content import QUEUED
from aurora_operator.plan.events import DECISIONS
from aurora_operator.plan.figures import parse_ratio
from aurora_protocol.training_records import TrainerStatus

_SPECULATOR: Final = ("namespace", "name")


@dataclass(frozen=True, slots=True)
class _Sample:
    """One value. ``label`` is the value of the metric's own label; empty where the metric has none."""

    value: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class _Figure:
    """The name, the meaning and the own label of one metric."""

    name: str
    help_text: str
    label: str = ""
    counter: bool = False

    def family(self) -> CounterMetricFamily | GaugeMetricFamily:
        """The metric without samples."""
        labels = [*_SPECULATOR, *([self.label] if self.label else [])]
        if self.counter:
            return CounterMetricFamily(self.name, self.help_text, labels=labels)
        return GaugeMetricFamily(self.name, self.help_text, labels=labels)


_CONDITION = _Figure(
    "aurora_speculator_condition",
    "1 while the condition of this type is True, otherwise 0. A condition that is not set has no series.",
    "type",
)
_STARTING = _Figure(
    "aurora_speculator_starting",
    "1 while Ready is False only because no pod has served clients yet since the creation or a scale-up from zero,"
    " nothing has failed, and the time limit of the start is not over. Otherwise 0.",
)
_TRAINER_QUEUED = _Figure(
    "aurora_speculator_trainer_queued",
    "1 while the trainer's pod waits behind a scheduling gate, for example in a queue of Kueue. Otherwise 0.",
)
_PHASE = _Figure(
    "aurora_speculator_rollout_phase",
    "1 for the present phase of the rollout. The other phases have no series.",
    "phase",
)
_DECISIONS = _Figure(
    "aurora_speculator_decisions",
    "Decisions about versions since this process leads, by the reason of their event.",
    "decision",
    counter=True,
)
_LAST_RECONCILE = _Figure(
    "aurora_speculator_last_reconcile_timestamp_seconds",
    "Unix time of the last reconcile that succeeded. Before the first one, when this process began to act.",
)
_DELETED_AT = _Figure(
    "aurora_speculator_deletion_timestamp_seconds",
    "Unix time at which somebody deleted the speculator. Present only while its deletion waits for the stored objects."
    " The observed metrics are absent then.",
)
_MEASURING_SINCE = _Figure(
    "aurora_speculator_measurement_started_timestamp_seconds",
    "Unix time at which the present measurement of a candidate began. Absent while nothing is measured.",
)
_ACTIVE = _Figure("aurora_speculator_active_version", "The active version of the draft.")
_SPEEDUP = _Figure(
    "aurora_speculator_active_speedup",
    "Measured throughput of the active version over the target without speculation, by bound: estimate, low or high.",
    "bound",
)
_HELD_OUT = _Figure(
    "aurora_speculator_held_out_accept_length",
    "Answer tokens per verify round that the newest draft would reach on held-out requests, bonus token included.",
)
_COVERAGE = _Figure(
    "aurora_speculator_vocabulary_coverage",
    "Share of held-out answer tokens that are in the draft's vocabulary, from 0 to 1.",
)
_TRAINED_TOKENS = _Figure(
    "aurora_speculator_trained_tokens",
    "Traced token positions that the trainer has seen. A trainer that restarts goes on from its last saved state, and"
    " counts further once it is past the former count.",
    counter=True,
)
_PENDING_SHARDS = _Figure("aurora_speculator_pending_shards", "Shards of new traces that wait to be trained.")
_LAG_TOKENS = _Figure(
    "aurora_speculator_training_lag_tokens",
    "Estimated token positions that wait to be trained: waiting shards times the mean size of a trained shard.",
)
_COST = _Figure(
    "aurora_speculator_training_devices",
    "Devices that the trainer holds while training is not suspended, by the kind of device.",
    "device",
)
_SAVED = _Figure(
    "aurora_speculator_saved_devices",
    "Estimated devices that speculation saves, averaged over about a day, by the kind of device."
    " Compared with the engines' own rounds without proposals, so what the plugin itself costs is not deducted.",
    "device",
)
_PODS = _Figure(
    "aurora_speculator_pods",
    "Inference pods, by the draft version that their engine serves (unknown: the agent did not answer).",
    "version",
)
_FIGURES: Final = (
    _CONDITION,
    _STARTING,
    _TRAINER_QUEUED,
    _PHASE,
    _DECISIONS,
    _LAST_RECONCILE,
    _DELETED_AT,
    _MEASURING_SINCE,
    _ACTIVE,
    _SPEEDUP,
    _HELD_OUT,
    _COVERAGE,
    _TRAINED_TOKENS,
    _PENDING_SHARDS,
    _LAG_TOKENS,
    _COST,
    _SAVED,
    _PODS,
)


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """What the trainer has seen of one lineage, as a counter that does not fall.

    A trainer that restarts goes on from its last saved state, so the count of its record falls. Prometheus takes a
    counter that falls for one that began at 0 again, and ``rate`` would count all that was ever trained once more.
    """

    lineage: int | None = None
    tokens: int = 0

    def highest(self, newer: TrainedTokens) -> TrainedTokens:
        """``newer``, where the count is no lower. Another lineage begins anew, an unknown one is the same."""
        if newer.lineage is not None and self.lineage is not None and newer.lineage != self.lineage:
            return newer
        lineage = self.lineage if newer.lineage is None else newer.lineage
        return TrainedTokens(lineage, max(self.tokens, newer.tokens))


_Values = Mapping[_Figure, tuple[_Sample, ...]]


@dataclass(slots=True)
class _Speculator:
    """What is known about one speculator."""

    values: _Values = field(default_factory=dict)
    counts: TrainedTokens = field(default_factory=TrainedTokens)
    decisions: Counter[str] = field(default_factory=Counter)
    scraped: bool = False
    """Whether a scrape has shown the counters of decisions at 0. The first reconcile after a change of the leader often
    decides something before the first scrape, so the counters wait for that scrape."""


class SpeculatorFigures(Collector):
    """The last known figures of all speculators on which this process acts."""

    def __init__(self) -> None:
        self._speculators: dict[tuple[str, str], _Speculator] = {}

    def record_observation(self, observed: Observed, now: datetime) -> None:
        """Take the figures of an observation whose reconcile succeeded at ``now``."""
        owner, record = observed.owner, observed.store.trainer
        values = {**_status_values(observed.status), **_trainer_figures(record)}
        values[_PODS] = tuple(_pod_counts(observed.pods))
        self._record((owner.namespace, owner.name), values, _counts(observed.status, record), now)

    def record_status(self, namespace: str, name: str, status: SpeculatorStatus, now: datetime) -> None:
        """Take the figures of a status alone: nothing was observed yet, or the spec cannot be used, at ``now``."""
        self._record((namespace, name), _status_values(status), _counts(status), now)

    def _record(self, key: tuple[str, str], values: _Values, counts: TrainedTokens, now: datetime) -> None:
        known = self._known(*key)
        known.counts = known.counts.highest(counts)
        known.values = {
            **values,
            _LAST_RECONCILE: (_Sample(now.timestamp()),),
            _TRAINED_TOKENS: (_Sample(known.counts.tokens),),
        }

    def record_deletion(self, namespace: str, name: str, deleted: datetime) -> None:
        """Show only that a speculator is being deleted: its pods end, and nobody writes its status any more."""
        self._known(namespace, name).values = {_DELETED_AT: _of_time(deleted)}

    def begin(self, namespace: str, name: str) -> None:
        """Show a speculator on which this process acts from now on, before anything is decided."""
        self._known(namespace, name)

    def count_decisions(self, namespace: str, name: str, decisions: Iterable[str]) -> None:
        """Count decisions about versions, each by the reason of its event."""
        self._known(namespace, name).decisions.update(decisions)

    def forget(self, namespace: str, name: str) -> None:
        """Drop the series of a speculator that is gone, or on which another installation acts."""
        self._speculators.pop((namespace, name), None)

    def _known(self, namespace: str, name: str) -> _Speculator:
        return self._speculators.setdefault((namespace, name), _Speculator())

    def describe(self) -> list[CounterMetricFamily | GaugeMetricFamily]:
        """All metrics without samples."""
        return [figure.family() for figure in _FIGURES]

    def collect(self) -> Iterator[Metric]:
        # Yields each metric before it makes the next, so that only one metric's samples are in memory. Copies the
        # speculators, because Prometheus asks in another thread than the one that records.
        speculators = list(self._speculators.items())
        for figure in _FIGURES:
            family = figure.family()
            for key, speculator in speculators:
                for sample in _samples(figure, speculator):
                    family.add_metric(_labels(key, sample.label), sample.value)
            yield family
            if figure is _DECISIONS:
                for _, speculator in speculators:
                    speculator.scraped = True


FIGURES: Final = SpeculatorFigures()
"""The figures that the operator's ``/metrics`` shows."""
REGISTRY.register(FIGURES)


def _samples(figure: _Figure, speculator: _Speculator) -> Iterable[_Sample]:
    if figure is not _DECISIONS:
        return speculator.values.get(figure, ())
    decisions = speculator.decisions if speculator.scraped else Counter[str]()
    return [_Sample(decisions[decision], decision) for decision in DECISIONS]


def _labels(speculator: tuple[str, str], label: str) -> list[str]:
    return [*speculator, label] if label else [*speculator]


def _status_values(status: SpeculatorStatus) -> dict[_Figure, tuple[_Sample, ...]]:
    known = [c for c in status.conditions if isinstance(c.type, ConditionType)]
    true = {c.type for c in known if c.status is ConditionStatus.TRUE}
    starting = status.start is not None and ConditionType.STALLED not in true and ConditionType.STORAGE_READY in true
    candidate, training = status.candidate, status.training
    queued = any(c.type is ConditionType.TRAINER_READY and c.reason == QUEUED for c in known)
    measuring = candidate is not None and candidate.phase is CandidatePhase.VALIDATING
    return {
        _CONDITION: tuple(_Sample(float(c.status is ConditionStatus.TRUE), c.type) for c in known),
        _STARTING: (_Sample(float(starting)),),
        _TRAINER_QUEUED: (_Sample(float(queued)),),
        _PHASE: (_Sample(1, status.rollout.phase),),
        _MEASURING_SINCE: _of_time(candidate.since if measuring and candidate else None),
        _ACTIVE: () if status.active is None else (_Sample(status.active.version),),
        _SPEEDUP: tuple(_speedup(status)),
        _HELD_OUT: _of_text(training.held_out_accept_length),
        _COST: _of_devices(training.devices),
        _SAVED: _of_devices(training.saved_devices),
    }


def _speedup(status: SpeculatorStatus) -> Iterator[_Sample]:
    interval = parse_ratio(status.active.speedup or "") if status.active is not None else None
    if interval is not None:
        for bound, value in zip(("estimate", "low", "high"), interval, strict=True):
            yield _Sample(value, bound)


def _counts(status: SpeculatorStatus, record: TrainerStatus | None = None) -> TrainedTokens:
    """The trainer's counts by its last record, or by what the status keeps of it."""
    if record is None:
        return TrainedTokens(None, status.training.trained_tokens)
    return TrainedTokens(record.lineage, record.trained_tokens)


def _trainer_figures(record: TrainerStatus | None) -> dict[_Figure, tuple[_Sample, ...]]:
    """What only the trainer's record says."""
    if record is None:
        return {}
    coverage = record.vocabulary_coverage
    lag = (_Sample(record.pending_shards * record.trained_tokens / record.shards),) if record.shards else ()
    return {
        _COVERAGE: () if coverage is None else (_Sample(coverage),),
        _PENDING_SHARDS: (_Sample(record.pending_shards),),
        _LAG_TOKENS: lag,
    }


def _pod_counts(pods: Iterable[PodView]) -> Iterator[_Sample]:
    versions = (pod.agent.version if pod.agent else None for pod in pods)
    for version, count in Counter("unknown" if v is None else str(v) for v in versions).items():
        yield _Sample(count, version)


def _of_devices(text: str | None) -> tuple[_Sample, ...]:
    """``0.35 nvidia.com/gpu`` as a number with the kind of device."""
    number, _, device = (text or "").partition(" ")
    return tuple(_Sample(sample.value, device) for sample in _of_text(number))


def _of_time(time: datetime | None) -> tuple[_Sample, ...]:
    return () if time is None else (_Sample(time.timestamp()),)


def _of_text(text: str | None) -> tuple[_Sample, ...]:
    try:
        value = float(text or "")
    except ValueError:
        return ()
    return (_Sample(value),) if math.isfinite(value) else ()
