"""Prometheus metrics of the operator itself, and counts of its work for one speculator.

:mod:`aurora_operator.speculator_figures` shows what is known about a speculator. Invariant: no label carries
user text other than the namespace and the name of the speculator.
"""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

from aurora_operator.kubernetes_api import API_CALLS

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
    "Reconciles of a speculator, by outcome: done (a look at the store alone counts too), conflict (somebody else wrote"
    " first) or error.",
    (*_SPECULATOR, "outcome"),
)
RECONCILE_SECONDS = Histogram(
    "aurora_reconcile_seconds", "Duration of a successful reconcile (observe, plan, act) of any speculator, in seconds."
)
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
STORE_READ_SECONDS = Histogram(
    "aurora_store_read_seconds", "Duration of reading one speculator's records from its store, in seconds."
)


_yielded: set[tuple[str, str]] = set()
YIELDED.set_function(lambda: len(_yielded))


def record_yield(namespace: str, name: str, *, yields: bool) -> None:
    """Count a speculator that is left to another installation, or no longer is."""
    (_yielded.add if yields else _yielded.discard)((namespace, name))


def forget(namespace: str, name: str) -> None:
    """Drop the series of a speculator that is gone."""
    record_yield(namespace, name, yields=False)
    for outcome in OUTCOMES:
        with suppress(KeyError):  # not remove_by_labels, which looks at the series of all speculators
            RECONCILES.remove(namespace, name, outcome)
