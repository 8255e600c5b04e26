"""Merges a user's partial pod template over ours. Pure.

Lists merge as in Kubernetes' strategic merge patch, by the key that Kubernetes declares for the field. A list without
such a key is replaced. ``null`` removes a key. :mod:`aurora_api.v1alpha1.template` refuses a template that removes
what our containers need.

Invariants: merging an empty template changes nothing. Merging twice gives the same as merging once. Our own items keep
their order. Everything that the user does not name stays ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "resourceClaims": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_REPLACED_ITEMS = frozenset({"volumes", "env", "resourceClaims"})
"""Fields whose items are unions: two kinds of volume, a ``value`` and a ``valueFrom``, or a claim and a claim's
template, cannot be merged."""


def _identity(item: Any, keys: tuple[str, ...]) -> Any:
    return tuple(item.get(key) for key in keys) if isinstance(item, Mapping) else item


def _merge_list(field: str, base: list[Any], override: list[Any]) -> list[Any]:
    keys = _MERGE_KEYS[field]
    out = {_identity(item, keys): item for item in base}
    for item in override:
        identity = _identity(item, keys)
        mergeable = identity in out and isinstance(item, Mapping) and field not in _REPLACED_ITEMS
        out[identity] = merge(out[identity], item) if mergeable else item
    return list(out.values())


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``override`` merged over ``base``. Neither argument is changed."""
    out = dict(base)
    for key, value in override.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            below = out.get(key)
            out[key] = merge(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, list) and key in _MERGE_KEYS:
            below = out.get(key)
            out[key] = _merge_list(key, below if isinstance(below, list) else [], value)
        else:
            out[key] = value
    return out
