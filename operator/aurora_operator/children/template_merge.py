"""Merging a user's partial pod template over ours. Pure.

Invariants: merging nothing changes nothing; merging twice is merging once; our own items keep their order; what the
user did not name stays ours. Lists merge as strategic merge does, by the key that Kubernetes declares for the field;
lists without such a key are replaced. ``null`` removes a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_WHOLE = frozenset({"volumes", "env"})
"""Items that are unions: merging two kinds of volume, or a value and a valueFrom, would make neither."""


def _identity(item: Any, keys: tuple[str, ...]) -> Any:
    return tuple(item.get(key) for key in keys) if isinstance(item, Mapping) else item


def _merge_list(field: str, base: list[Any], override: list[Any]) -> list[Any]:
    keys = _KEYS[field]
    out = {_identity(item, keys): item for item in base}
    for item in override:
        identity = _identity(item, keys)
        mergeable = identity in out and isinstance(item, Mapping) and field not in _WHOLE
        out[identity] = merge(out[identity], item) if mergeable else item
    return list(out.values())


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``override`` over ``base``; neither is changed."""
    out = dict(base)
    for key, value in override.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping):
            below = out.get(key)
            out[key] = merge(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, list) and key in _KEYS:
            below = out.get(key)
            out[key] = _merge_list(key, below if isinstance(below, list) else [], value)
        else:
            out[key] = value
    return out
