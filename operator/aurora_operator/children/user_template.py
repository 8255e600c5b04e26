"""Reads parts of a pod template that a user wrote, where any value may have the wrong type.

Invariant: a value of the wrong type reads as absent. The API server refuses it later, in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mapping(value: Any) -> Mapping[str, Any]:
    """``value`` if it is an object, otherwise an empty object."""
    return value if isinstance(value, Mapping) else {}


def container_named(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The container ``name`` of a pod, or of a user's partial pod; empty when there is none."""
    listed = pod.get("containers")
    containers = [mapping(item) for item in listed] if isinstance(listed, list) else []
    return next((item for item in containers if item.get("name") == name), {})
