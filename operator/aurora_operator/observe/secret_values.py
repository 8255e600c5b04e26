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

KEPT_SECONDS = 30.0
"""A changed Secret is noticed after this time. One that does not exist is looked for at each use."""


class SecretReader:
    """The Secrets that one speculator uses.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, api: KubernetesApi, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self.namespace, self._clock = api, namespace, clock
        self._kept: dict[str, tuple[Object, float]] = {}
        """Name -> the Secret, and when it was read."""

    async def find(self, name: str) -> Object | None:
        """The Secret, or None when it does not exist. Raises :class:`KubernetesError`."""
        secret, read_seconds = self._kept.pop(name, (None, 0.0))
        if secret is None or self._clock() - read_seconds >= KEPT_SECONDS:
            secret, read_seconds = await self._api.find(kubernetes_api.SECRET, self.namespace, name), self._clock()
        if secret is not None:
            self._kept[name] = (secret, read_seconds)
        return secret


def secret_value(secret: Object, key: str) -> str:
    """The decoded value of ``key``; empty when the Secret does not have it, or holds no text there."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(key, "")).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
