"""Prometheus metrics of each speculator, from its status and from the trainer's last record.

Why a collector and not one object per series: a speculator has about thirty series, some of which come and go. The
collector keeps the few values of each speculator, and makes the series when Prometheus asks.

Invariants: a value that is not known has no series. A figure in the status that cannot be parsed counts as not known,
because a metric must never make a reconcile fail. Known limit: PromQL's ``increase`` does not see the first value of a
new series, and so not what a new leader decides before its first scrape.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import CandidatePhase, SpeculatorStatus
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan.events import DECISIONS
from aurora_operator.plan.figures import parse_ratio
from aurora_protocol.training_records import TrainerStatus

_GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "condition": (
        "type",
        "1 while the condition of this type is True, otherwise 0. A condition that is not set has no series.",
    ),
    "starting": (
        "",
        "1 while Ready is False only because no pod has served clients yet since the creation or a scale-up from zero,"
        " nothing has failed, and the time limit of the start is not over. Otherwise 0.",
    ),
    "rollout_phase": ("phase", "1 for the present phase of the rollout. The other phases have no series."),
    "last_reconcile_timestamp_seconds": (
        "",
        "Unix time of the last reconcile that succeeded. Before the first one, when this process began to act.",
    ),
    "deletion_timestamp_seconds": (
        "",
        "Unix time at which somebody deleted the speculator. Present only while its deletion waits for the stored"
        " objects. The observed metrics are absent then.",
    ),
    "measurement_started_timestamp_seconds": (
        "",
        "Unix time at which the present measurement of a candidate began. Absent while nothing is measured.",
    ),
    "active_version": ("", "The active version of the draft."),
    "active_speedup": (
        "bound",
        "Measured throughput of the active version over the target without speculation, by bound: estimate, low or"
        " high.",
    ),
    "held_out_accept_length": (
        "",
        "Answer tokens per verify round that the newest draft would reach on held-out requests, bonus token included.",
    ),
    "pending_shards": ("", "Shards of new traces that wait to be trained."),
    "trainer_restarts": ("", "How often Kubernetes restarted the container of the present trainer pod."),
    "training_devices": (
        "device",
        "GPUs that the trainer holds while training is not suspended, by kind.",
    ),
    "saved_devices": (
        "device",
        "Estimated GPUs that speculation saves, averaged over about a day, by kind. Compared with the"
        " engines' own rounds without proposals, so what the plugin itself costs is not deducted.",
    ),
    "pods": (
        "version",
        "Inference pods, by the draft version that their engine serves (unknown: the agent did not answer).",
    ),
}
"""Name without its prefix -> own label (empty: none) and meaning."""
_DECISIONS_HELP: Final = "Decisions about versions since this process leads, by the reason of their event."
_Values = Mapping[str, Mapping[str, float]]
"""Name of a gauge -> value of its own label (empty where it has none) -> value."""


@dataclass(slots=True)
class _Speculator:
    """What is known about one speculator."""

    values: _Values = field(default_factory=dict)
    decisions: Counter[str] = field(default_factory=Counter)


class SpeculatorFigures(Collector):
    """The last known figures of all speculators on which this process acts."""

    def __init__(self) -> None:
        self._speculators: dict[tuple[str, str], _Speculator] = {}

    def record_observation(self, observed: Observed, now: datetime) -> None:
        """Take the figures of an observation whose reconcile succeeded at ``now``."""
        owner = observed.owner
        restarts = {} if observed.trainer is None else {"": float(observed.trainer.restarts)}
        of_pods = {"pods": _pod_counts(observed.pods), "trainer_restarts": restarts}
        more = {**_trainer_values(observed.store.trainer), **of_pods}
        self._record((owner.namespace, owner.name), {**_status_values(observed.status), **more}, now)

    def record_status(self, namespace: str, name: str, status: SpeculatorStatus, now: datetime) -> None:
        """Take the figures of a status alone: nothing was observed yet, or the spec cannot be used, at ``now``."""
        self._record((namespace, name), _status_values(status), now)

    def _record(self, key: tuple[str, str], values: _Values, now: datetime) -> None:
        self._known(*key).values = {**values, "last_reconcile_timestamp_seconds": {"": now.timestamp()}}

    def record_deletion(self, namespace: str, name: str, deleted: datetime) -> None:
        """Show only that a speculator is being deleted: its pods end, and nobody writes its status any more."""
        self._known(namespace, name).values = {"deletion_timestamp_seconds": {"": deleted.timestamp()}}

    def count_decisions(self, namespace: str, name: str, decisions: Iterable[str]) -> None:
        """Count decisions about versions, each by the reason of its event."""
        self._known(namespace, name).decisions.update(decisions)

    def forget(self, namespace: str, name: str) -> None:
        """Drop the series of a speculator that is gone, or on which another installation acts."""
        self._speculators.pop((namespace, name), None)

    def _known(self, namespace: str, name: str) -> _Speculator:
        return self._speculators.setdefault((namespace, name), _Speculator())

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics. Prometheus asks in another thread than the one that records, so the speculators are copied."""
        speculators = list(self._speculators.items())
        for gauge, (label, meaning) in _GAUGES.items():
            family = GaugeMetricFamily(f"aurora_speculator_{gauge}", meaning, labels=_labels(label))
            for key, speculator in speculators:
                for own, value in speculator.values.get(gauge, {}).items():
                    family.add_metric([*key, own] if label else [*key], value)
            yield family
        counters = CounterMetricFamily("aurora_speculator_decisions", _DECISIONS_HELP, labels=_labels("decision"))
        for key, speculator in speculators:
            for decision in DECISIONS:
                counters.add_metric([*key, decision], speculator.decisions[decision])
        yield counters


def _labels(own: str) -> list[str]:
    return ["namespace", "name", *([own] if own else [])]


def _status_values(status: SpeculatorStatus) -> dict[str, Mapping[str, float]]:
    known = [c for c in status.conditions if isinstance(c.type, ConditionType)]
    true = {c.type for c in known if c.status is ConditionStatus.TRUE}
    starting = status.starting and not true & {ConditionType.READY, ConditionType.STALLED}
    candidate, training = status.candidate, status.training
    since = candidate.since if candidate is not None and candidate.phase is CandidatePhase.VALIDATING else None
    return {
        "condition": {c.type: float(c.status is ConditionStatus.TRUE) for c in known},
        "starting": {"": float(starting and ConditionType.STORAGE_READY in true)},
        "rollout_phase": {status.rollout.phase: 1.0},
        "measurement_started_timestamp_seconds": {} if since is None else {"": since.timestamp()},
        "active_version": {"": float(status.active.version)} if status.active else {},
        "active_speedup": _speedup(status),
        "held_out_accept_length": _of_text(training.held_out_accept_length),
        "training_devices": _of_devices(training.devices),
        "saved_devices": _of_devices(training.saved_devices),
    }


def _speedup(status: SpeculatorStatus) -> dict[str, float]:
    interval = parse_ratio(status.active.speedup or "") if status.active is not None else None
    return {} if interval is None else dict(zip(("estimate", "low", "high"), interval, strict=True))


def _trainer_values(record: TrainerStatus | None) -> dict[str, Mapping[str, float]]:
    """What only the trainer's record says."""
    return {} if record is None else {"pending_shards": {"": float(record.pending_shards)}}


def _pod_counts(pods: Iterable[PodView]) -> Mapping[str, float]:
    versions = (pod.agent.version if pod.agent else None for pod in pods)
    return Counter("unknown" if version is None else str(version) for version in versions)


def _of_devices(text: str | None) -> dict[str, float]:
    """``0.35 nvidia.com/gpu`` as a number with the kind of device."""
    number, _, device = (text or "").partition(" ")
    known = _of_text(number)
    return {device: known[""]} if known else {}


def _of_text(text: str | None) -> dict[str, float]:
    try:
        value = float(text or "")
    except ValueError:
        return {}
    return {"": value} if math.isfinite(value) else {}


FIGURES: Final = SpeculatorFigures()
"""The figures that the operator's ``/metrics`` shows."""
REGISTRY.register(FIGURES)
