"""Prometheus metrics of the operator itself. No label carries user text: only namespace and name of the speculator."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from aurora_operator.observe.observed import Observed

_WHO = ("namespace", "name")

RECONCILES = Counter("aurora_reconciles", "Looks at a speculator, by how they ended.", (*_WHO, "outcome"))
SECONDS = Histogram("aurora_reconcile_seconds", "Time of one look, plan and act.", _WHO)
READY = Gauge("aurora_speculator_ready", "1 when the condition Ready is True.", _WHO)
ACTIVE = Gauge("aurora_speculator_active_version", "The active draft version.", _WHO)
POD_VERSION = Gauge("aurora_speculator_pods", "Inference pods by what their engine serves.", (*_WHO, "version"))


def show(observed: Observed) -> None:
    """Set the gauges from one look."""
    who = (observed.owner.namespace, observed.owner.name)
    ready = any(c.type == "Ready" and c.status == "True" for c in observed.status.conditions)
    READY.labels(*who).set(int(ready))
    if observed.store.channel is not None:
        ACTIVE.labels(*who).set(observed.store.channel.active)
    forget_pods(*who)
    for pod in observed.pods:
        version = pod.agent.version if pod.agent else None
        POD_VERSION.labels(*who, "unknown" if version is None else str(version)).inc()


def forget_pods(namespace: str, name: str) -> None:
    POD_VERSION.remove_by_labels({"namespace": namespace, "name": name})


def forget(namespace: str, name: str) -> None:
    """Drop the series of a speculator that is gone."""
    for metric in (RECONCILES, SECONDS, READY, ACTIVE, POD_VERSION):
        metric.remove_by_labels({"namespace": namespace, "name": name})
