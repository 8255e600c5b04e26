"""Prometheus metrics: the operator's own, and what is known about each speculator.

:mod:`aurora_operator.metrics.speculator_figures` is imported by its path, because it knows plans, and modules that
plans are made from count calls here.
"""

from aurora_operator.metrics.operator_metrics import (
    API_CALLS,
    LEADING,
    OUTCOMES,
    RECONCILE_SECONDS,
    RECONCILES,
    STORE_CALLS_ABANDONED,
    STORE_READ_SECONDS,
    STORE_REQUESTS,
    UPGRADES,
    YIELDED,
    forget,
    record_yield,
)

__all__ = [
    "API_CALLS",
    "LEADING",
    "OUTCOMES",
    "RECONCILES",
    "RECONCILE_SECONDS",
    "STORE_CALLS_ABANDONED",
    "STORE_READ_SECONDS",
    "STORE_REQUESTS",
    "UPGRADES",
    "YIELDED",
    "forget",
    "record_yield",
]
