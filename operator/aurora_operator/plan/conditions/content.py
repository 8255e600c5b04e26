"""The part of a condition that its type's function decides."""

from __future__ import annotations

from dataclasses import dataclass

SCALED_TO_ZERO = "ScaledToZero"
"""Reason of Available and ServingReady while no pods are wanted."""


@dataclass(frozen=True)
class ConditionContent:
    """Status, reason and message of one condition. ``status`` None: unknown."""

    status: bool | None
    reason: str
    message: str
