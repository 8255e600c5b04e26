"""Prometheus metrics: the operator's own, and what is known about each speculator.

:mod:`aurora_operator.metrics.speculator_figures` is imported by its path, because it knows plans, and modules that
plans are made from count calls here.
"""

from aurora_operator.metrics.operator_metrics import (
    ACTIVE_VERSION,
    API_CALLS,
    API_CALLS_ABANDONED,
    CACHE_OBJECTS,
    CROWDED_NAMESPACES,
    LEADING,
    OUTCOMES,
    READY,
    RECONCILE_SECONDS,
    RECONCILES,
    REFUSED_NAMESPACES,
    STORE_CALLS_ABANDONED,
    STORE_READ_SECONDS,
    STORE_REQUESTS,
    STORE_WAITS_ABANDONED,
    UPGRADES,
    YIELDED,
    count_cache_objects,
    forget,
    forget_observations,
    record_observation,
    record_ready,
)

__all__ = [
    "ACTIVE_VERSION",
    "API_CALLS",
    "API_CALLS_ABANDONED",
    "CACHE_OBJECTS",
    "CROWDED_NAMESPACES",
    "LEADING",
    "OUTCOMES",
    "READY",
    "RECONCILES",
    "RECONCILE_SECONDS",
    "REFUSED_NAMESPACES",
    "STORE_CALLS_ABANDONED",
    "STORE_READ_SECONDS",
    "STORE_REQUESTS",
    "STORE_WAITS_ABANDONED",
    "UPGRADES",
    "YIELDED",
    "count_cache_objects",
    "forget",
    "forget_observations",
    "record_observation",
    "record_ready",
]
