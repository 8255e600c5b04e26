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
        """Whether this speculator controls ``obj``. Any other object belongs to somebody else.

        A plain owner reference does not count: a user may add one, so that Kubernetes deletes the user's object
        together with the speculator.
        """
        references = obj["metadata"].get("ownerReferences") or ()
        return any(reference["uid"] == self.uid and reference.get("controller") for reference in references)
