"""Bounds the memory that the objects of one namespace take in the cache.

Why: the cache holds every object with the operator's label, and anybody may set that label. Without a bound, one tenant
could fill the memory of the operator that serves all.

Invariant: an object that does not fit is not stored. It concerns only speculators of its own namespace, because a
namespace has a budget of its own.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

NAMESPACE_BYTES = 4 << 20
"""For the children in one namespace: about 5,000 pods, or 30 ordinary speculators."""
SPECULATOR_BYTES = 256 << 10
"""More for each speculator in the namespace. One with 10 pods needs about 20 kB."""
MAX_SPECULATOR_BYTES = 256 << 10
"""For the custom resource itself, compressed. An ordinary one needs 2 kB."""
ENTRY_BYTES = 500
"""Bytes that an entry takes beside its packed object."""


class CacheBudget:
    """Counts the bytes that the children in each namespace take."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._crowded: set[str] = set()

    @property
    def crowded_namespaces(self) -> int:
        """Namespaces with objects that did not fit."""
        return len(self._crowded)

    def allows_child(self, namespace: str, packed: bytes, replaced: bytes | None, speculators: int) -> bool:
        """Whether a child fits in place of ``replaced`` (None: in addition), in a namespace with these speculators."""
        limit = NAMESPACE_BYTES + SPECULATOR_BYTES * speculators
        used = self._used.get(namespace, 0) - _bytes(replaced)
        if used + _bytes(packed) <= limit:
            if used < limit / 2:
                self._crowded.discard(namespace)
            return True
        if namespace not in self._crowded:
            self._crowded.add(namespace)
            log.error(
                "namespace %s: the objects with the label app.kubernetes.io/managed-by=aurora-operator take more than"
                " %d bytes, so some of them are ignored; delete or relabel those that belong to no speculator",
                namespace,
                limit,
            )
        return False

    def allows_speculator(self, namespace: str, name: str, packed: bytes) -> bool:
        """Whether a custom resource may be stored."""
        if len(packed) <= MAX_SPECULATOR_BYTES:
            return True
        log.error("%s/%s exceeds %d bytes and is ignored; make it smaller", namespace, name, MAX_SPECULATOR_BYTES)
        return False

    def count(self, namespace: str, packed: bytes | None, replaced: bytes | None) -> None:
        """A child was stored or removed (None)."""
        used = self._used.get(namespace, 0) + _bytes(packed) - _bytes(replaced)
        if used:
            self._used[namespace] = used
        else:
            self._used.pop(namespace, None)
            self._crowded.discard(namespace)


def _bytes(packed: bytes | None) -> int:
    return 0 if packed is None else len(packed) + ENTRY_BYTES
