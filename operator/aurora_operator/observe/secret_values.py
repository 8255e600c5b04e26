"""Reads Secrets by name and keeps them. The operator has no permission to list or watch them.

Invariants: a Secret that works costs one read. A Secret that is missing, or whose value was refused, is read again
after a delay that grows from :data:`MIN_DELAY_SECONDS` to :data:`MAX_DELAY_SECONDS`. Its value is never logged.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from aurora_operator import kubernetes_api
from aurora_operator.errors import NotFound
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import KubernetesApi, Object

_READ_METADATA = frozenset({"name", "namespace", "uid", "resourceVersion", "ownerReferences"})
MIN_DELAY_SECONDS, MAX_DELAY_SECONDS = 2.0, 60.0


@dataclass(frozen=True)
class _Reading:
    secret: Object | None
    read_seconds: float
    reads: int
    """How often the Secret was read in a row without a change."""
    next_seconds: float = inf
    """When to read the Secret again."""

    @property
    def delay_seconds(self) -> float:
        return min(MAX_DELAY_SECONDS, MIN_DELAY_SECONDS * (1 << min(self.reads - 1, 10)))

    def doubted(self) -> _Reading:
        return _Reading(self.secret, self.read_seconds, self.reads, self.read_seconds + self.delay_seconds)

    @property
    def revision(self) -> str:
        return "" if self.secret is None else self.secret["metadata"].get("resourceVersion", "")


class SecretReader:
    """The Secrets that one speculator uses.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, api: KubernetesApi, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._namespace, self._clock = api, namespace, clock
        self._readings: dict[str, _Reading] = {}

    async def find(self, name: str) -> Object | None:
        """The Secret, or None when it does not exist. Raises :class:`KubernetesError`."""
        known = self._readings.get(name)
        if known is not None and self._clock() < known.next_seconds:
            return known.secret
        try:
            secret = _read_parts(await call_api(self._api.get, kubernetes_api.SECRET, self._namespace, name))
        except NotFound:
            secret = None
        reading = _Reading(secret, self._clock(), reads=1)
        if known is not None and known.revision == reading.revision:
            reading = _Reading(secret, reading.read_seconds, known.reads + 1)
        self._readings[name] = reading if secret is not None else reading.doubted()
        return secret

    def doubt(self, name: str) -> None:
        """The Secret's value was refused, so read the Secret again after its delay."""
        known = self._readings.get(name)
        if known is not None and known.next_seconds == inf:
            self._readings[name] = known.doubted()

    def drop(self, name: str) -> None:
        """Forget one Secret: its reader keeps what it needs, or the operator has just created the Secret."""
        self._readings.pop(name, None)

    def forget(self) -> None:
        """Read every Secret again at the next use, because the spec changed."""
        self._readings.clear()

    @property
    def seconds_until_next_read(self) -> float:
        """Seconds until a Secret is to be read again; infinite while all are trusted."""
        due = min((reading.next_seconds for reading in self._readings.values()), default=inf)
        return max(0.0, due - self._clock())


def _read_parts(secret: Object) -> Object:
    """The parts of a Secret that somebody reads. The bookkeeping of field managers is several times as large."""
    metadata = {key: value for key, value in secret["metadata"].items() if key in _READ_METADATA}
    return {
        key: metadata if key == "metadata" else secret[key] for key in ("kind", "metadata", "data") if key in secret
    }


def secret_value(secret: Object, key: str) -> str:
    """The decoded value of ``key``; empty when the Secret does not have it, or holds no text there."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(key, "")).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
