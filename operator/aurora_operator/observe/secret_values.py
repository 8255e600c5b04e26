"""Reads Secrets by name and keeps them for a while. The operator has no permission to list or watch them.

Invariant: the value of a Secret is never logged.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable

from aurora_operator import kubernetes_api
from aurora_operator.kubernetes_api import KubernetesApi, Object

KEPT_SECONDS = 600.0
"""A changed Secret whose former value still works is noticed after this time."""
DOUBTED_SECONDS = 15.0
"""The same while something speaks against the value: it was refused, or a pod does not start."""


class SecretReader:
    """The Secrets that one speculator uses.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, api: KubernetesApi, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self.namespace, self._clock = api, namespace, clock
        self._kept: dict[str, tuple[Object, float]] = {}
        """Name -> the Secret, and when it was read."""
        self._doubted: set[str] = set()

    async def find(self, name: str) -> Object | None:
        """The Secret, or None when it does not exist. Raises :class:`KubernetesError`."""
        secret, read_seconds = self._kept.get(name, (None, 0.0))
        longest_seconds = DOUBTED_SECONDS if name in self._doubted else KEPT_SECONDS
        if secret is not None and self._clock() - read_seconds < longest_seconds:
            return secret
        self.drop(name)
        found = await self._api.find(kubernetes_api.SECRET, self.namespace, name)
        if found is not None:
            self._kept[name] = (found, self._clock())
        return found

    def doubt(self, name: str) -> None:
        """Something speaks against the Secret's value, so read the Secret again soon."""
        self._doubted.add(name)

    def drop(self, name: str) -> None:
        """Forget one Secret: its reader keeps what it needs, or the operator has just created the Secret."""
        self._kept.pop(name, None)
        self._doubted.discard(name)

    def forget(self) -> None:
        """Read every Secret again at the next use, because the spec changed."""
        self._kept.clear()
        self._doubted.clear()


def secret_value(secret: Object, key: str) -> str:
    """The decoded value of ``key``; empty when the Secret does not have it, or holds no text there."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(key, "")).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
