"""Prometheus metrics of the operator itself, and counts of its work for one speculator.

:mod:`aurora_operator.metrics.speculator_figures` shows what is known about a speculator. Invariant: no label carries
user text other than the namespace and the name of the speculator.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.kubernetes_api import API_CALLS
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.observe.observed import Observed

__all__ = ["API_CALLS"]

_SPECULATOR = ("namespace", "name")

LEADING = Gauge(
    "aurora_operator_leading", "1 while this replica holds the Lease and acts, 0 while it waits as a standby."
)
YIELDED = Gauge(
    "aurora_operator_yielded_speculators",
    "Speculators that this replica leaves to another installation of the operator, which has answered that it acts or"
    " cannot be asked.",
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
CACHE_OBJECTS = Gauge("aurora_cache_objects", "Objects in the operator's cache, by kind.", ("kind",))
REFUSED_NAMESPACES = Gauge(
    "aurora_refused_namespaces",
    "Watched namespaces whose objects the API server refuses to list. The operator does nothing there.",
)
CROWDED_NAMESPACES = Gauge(
    "aurora_crowded_namespaces",
    "Namespaces with more labelled objects than the operator's cache takes. Some of the objects there are ignored.",
)
READY = Gauge("aurora_speculator_ready", "1 while the condition Ready is True, otherwise 0.", _SPECULATOR)
ACTIVE_VERSION = Gauge("aurora_speculator_active_version", "The active version of the draft.", _SPECULATOR)
UPGRADES = Gauge(
    "aurora_upgrade_speculators",
    "Speculators whose pods have not restarted yet since an upgrade of the operator, by stage: waiting, restarting or"
    " failed (no further speculator restarts).",
    ("stage",),
)

API_CALLS_ABANDONED = Counter(
    "aurora_api_calls_abandoned",
    "Calls of the Kubernetes API that were not over at their deadline, and were abandoned.",
)
STORE_REQUESTS = Counter(
    "aurora_store_requests",
    "HTTP requests to S3 stores, by operation: get, list, create, delete, head. Retries are counted too.",
    ("operation",),
)
for _operation in ("get", "list", "create", "delete", "head"):
    STORE_REQUESTS.labels(_operation)
STORE_CALLS_ABANDONED = Counter(
    "aurora_store_calls_abandoned", "Calls of S3 stores that were not over at their deadline, and were abandoned."
)
STORE_WAITS_ABANDONED = Counter(
    "aurora_store_waits_abandoned",
    "Calls of S3 stores that never began, because calls that hang had all their threads until their deadline.",
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


def count_cache_objects(cache: ClusterCache) -> None:
    """Let the gauges show what ``cache`` holds whenever they are scraped."""
    for kind in cache.counts:
        CACHE_OBJECTS.labels(kind).set_function(partial(cache.counts.__getitem__, kind))
    REFUSED_NAMESPACES.set_function(lambda: cache.refused_namespaces)
    CROWDED_NAMESPACES.set_function(lambda: cache.budget.crowded_namespaces)


def forget(namespace: str, name: str) -> None:
    """Drop the series of a speculator that is gone."""
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
