"""The speculator that owns every child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Owner:
    """The custom resource's identity."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str

    @property
    def full_name(self) -> str:
        """``namespace/name``, as log lines show it."""
        return f"{self.namespace}/{self.name}"

    def owns(self, obj: Mapping[str, Any]) -> bool:
        """Whether ``obj`` has an owner reference to this speculator. An object without one belongs to somebody else."""
        return any(reference["uid"] == self.uid for reference in obj["metadata"].get("ownerReferences") or ())
