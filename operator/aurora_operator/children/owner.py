"""The speculator that owns every child."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """The custom resource's identity."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
