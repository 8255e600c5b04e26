"""Prometheus metrics of the operator itself, and counts of its work for one speculator.

:mod:`aurora_operator.metrics.speculator_figures` shows what is known about a speculator. Invariant: no label carries
user text other than the namespace and the name of the speculator.
"""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.kubernetes_api import API_CALLS
from aurora_operator.observe.observed import Observed

__all__ = ["API_CALLS"]

_SPECULATOR = ("namespace", "name")

LEADING = Gauge(
    "aurora_operator_leading", "1 while this replica holds the Lease and acts, 0 while it waits as a standby."
)
YIELDED = Gauge(
    "aurora_operator_yielded_speculators",
    "Speculators that this replica leaves to another installation of the operator, because their status names it.",
)
OUTCOMES = ("done", "conflict", "error")
"""How a reconcile may end. The counter of each begins at 0."""
RECONCILES = Counter(
    "aurora_reconciles",
    "Reconciles of a speculator, by outcome: done, conflict (somebody else wrote first) or error.",
    (*_SPECULATOR, "outcome"),
)
RECONCILE_SECONDS = Histogram(
    "aurora_reconcile_seconds", "Duration of a successful reconcile (observe, plan, act) of any speculator, in seconds."
)
READY = Gauge("aurora_speculator_ready", "1 while the condition Ready is True, otherwise 0.", _SPECULATOR)
ACTIVE_VERSION = Gauge("aurora_speculator_active_version", "The active version of the draft.", _SPECULATOR)
UPGRADES = Gauge(
    "aurora_upgrade_speculators",
    "Speculators whose pods have not restarted yet since an upgrade of the operator, by stage: waiting, restarting or"
    " failed.",
    ("stage",),
)

STORE_REQUESTS = Counter(
    "aurora_store_requests",
    "Requests to S3 stores, by operation: get, list, create, delete, head. Retries are not counted.",
    ("operation",),
)
for _operation in ("get", "list", "create", "delete", "head"):
    STORE_REQUESTS.labels(_operation)
STORE_CALLS_ABANDONED = Counter(
    "aurora_store_calls_abandoned", "Calls of S3 stores that were not over at their deadline, and were abandoned."
)
STORE_READ_SECONDS = Histogram(
    "aurora_store_read_seconds", "Duration of reading one speculator's records from its store, in seconds."
)


def record_observation(observed: Observed, seconds: float) -> None:
    """Set the gauges from one observation, whose reconcile took ``seconds``."""
    labels = (observed.owner.namespace, observed.owner.name)
    RECONCILE_SECONDS.observe(seconds)
    record_ready(*labels, observed.status)
    if observed.store.channel is not None:
        ACTIVE_VERSION.labels(*labels).set(observed.store.channel.active)


def record_ready(namespace: str, name: str, status: SpeculatorStatus) -> None:
    """Set the gauge of the condition Ready."""
    ready = any(c.type is ConditionType.READY and c.status is ConditionStatus.TRUE for c in status.conditions)
    READY.labels(namespace, name).set(int(ready))


_yielded: set[tuple[str, str]] = set()
YIELDED.set_function(lambda: len(_yielded))


def record_yield(namespace: str, name: str, *, yields: bool) -> None:
    """Count a speculator that is left to another installation, or no longer is."""
    (_yielded.add if yields else _yielded.discard)((namespace, name))


def forget(namespace: str, name: str) -> None:
    """Drop the series of a speculator that is gone."""
    record_yield(namespace, name, yields=False)
    for outcome in OUTCOMES:
        _remove(RECONCILES, namespace, name, outcome)
    forget_observations(namespace, name)


def forget_observations(namespace: str, name: str) -> None:
    """Drop what was observed about a speculator that is being deleted, or on which another installation acts."""
    for metric in (READY, ACTIVE_VERSION):
        _remove(metric, namespace, name)


def _remove(metric: Counter | Gauge, *labels: str) -> None:
    """Drop one series, if it exists.

    Why not ``remove_by_labels``: it looks at the series of all speculators.
    """
    with suppress(KeyError):
        metric.remove(*labels)
