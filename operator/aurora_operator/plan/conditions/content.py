"""The part of a condition that its type's function decides."""

from __future__ import annotations

from dataclasses import dataclass

SCALED_TO_ZERO = "ScaledToZero"
"""Reason of ServingReady while no pods are wanted."""

SERVING = "Serving"
"""Reason of ServingReady and Ready while every wanted pod serves the version that it should."""


@dataclass(frozen=True)
class ConditionContent:
    """Status, reason and message of one condition."""

    status: bool
    reason: str
    message: str
