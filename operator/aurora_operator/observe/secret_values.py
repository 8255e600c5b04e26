"""Reads Secrets by name and keeps them. The operator has no permission to list or watch them.

Invariants: a Secret that works costs one read. A Secret that is missing or may not be read, or whose value was refused,
is read again after a delay that grows from :data:`MIN_DELAY_SECONDS` to :data:`MAX_DELAY_SECONDS`. A mere suspicion
grows the delay to :data:`MAX_SUSPICION_SECONDS`. Its value is never logged.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from math import inf

from aurora_operator import kubernetes_api
from aurora_operator.errors import KubernetesError, NotFound
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import KubernetesApi, Object

_READ_METADATA = frozenset({"name", "namespace", "uid", "resourceVersion", "ownerReferences"})
MIN_DELAY_SECONDS, MAX_DELAY_SECONDS = 2.0, 60.0
MAX_SUSPICION_SECONDS = 600.0
"""A pod that crashes for days casts suspicion on its Secrets for days, and they are seldom the reason."""


@dataclass(frozen=True)
class _Reading:
    secret: Object | None
    read_seconds: float
    reads: int
    """How often the Secret was read in a row without a change."""
    next_seconds: float = inf
    """When to read the Secret again."""
    refusal: KubernetesError | None = None
    """Why the operator may not read the Secret."""

    def doubted(self, longest_seconds: float = MAX_DELAY_SECONDS) -> _Reading:
        delay_seconds = min(longest_seconds, MIN_DELAY_SECONDS * (1 << min(self.reads - 1, 10)))
        return replace(self, next_seconds=min(self.next_seconds, self.read_seconds + delay_seconds))

    @property
    def revision(self) -> str:
        return "" if self.secret is None else self.secret["metadata"].get("resourceVersion", "")


class SecretReader:
    """The Secrets that one speculator uses.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, api: KubernetesApi, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self.namespace, self._clock = api, namespace, clock
        self._readings: dict[str, _Reading] = {}
        self._asked = set[str]()
        """Names that were asked for since :meth:`drop_unasked`."""

    async def find(self, name: str) -> Object | None:
        """The Secret, or None when it does not exist. Raises :class:`KubernetesError`."""
        self._asked.add(name)
        known = self._readings.get(name)
        if known is None or self._clock() >= known.next_seconds:
            known = self._readings[name] = await self._read(name, known)
        if known.refusal is not None:
            raise _without_traceback(known.refusal)
        return known.secret

    async def _read(self, name: str, known: _Reading | None) -> _Reading:
        secret, refusal = None, None
        try:
            secret = _read_parts(await call_api(self._api.get, kubernetes_api.SECRET, self.namespace, name))
        except NotFound:
            pass
        except KubernetesError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            refusal = _without_traceback(error)
        reading = _Reading(secret, self._clock(), reads=1, refusal=refusal)
        if known is not None and known.revision == reading.revision:
            reading = replace(reading, reads=known.reads + 1)
        return reading if secret is not None else reading.doubted()

    def doubt(self, name: str) -> None:
        """The Secret's value was refused, so read the Secret again after its delay."""
        self._doubt(name, MAX_DELAY_SECONDS)

    def suspect(self, name: str) -> None:
        """The Secret may be gone or another one, though nothing says so. Read it again after a delay, ever later."""
        self._doubt(name, MAX_SUSPICION_SECONDS)

    def _doubt(self, name: str, longest_seconds: float) -> None:
        known = self._readings.get(name)
        if known is not None:
            self._readings[name] = known.doubted(longest_seconds)

    def drop(self, name: str) -> None:
        """Forget one Secret: its reader keeps what it needs, or the operator has just created the Secret."""
        self._readings.pop(name, None)

    def drop_unasked(self) -> None:
        """Forget each Secret that nobody asked for since the last call. It would stay due for ever: nobody reads it."""
        self._readings = {name: reading for name, reading in self._readings.items() if name in self._asked}
        self._asked.clear()

    def forget(self) -> None:
        """Read every Secret again at the next use, because the spec changed."""
        self._readings.clear()

    @property
    def seconds_until_next_read(self) -> float:
        """Seconds until a Secret is to be read again; infinite while all are trusted."""
        due = min((reading.next_seconds for reading in self._readings.values()), default=inf)
        return max(0.0, due - self._clock())


def _without_traceback(error: KubernetesError) -> KubernetesError:
    """A new exception that says the same. A traceback would keep the frames of an observation in memory."""
    return KubernetesError(str(error), error.status)


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
