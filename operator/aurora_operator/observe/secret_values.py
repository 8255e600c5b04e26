"""Reads Secrets by name. The operator has no permission to list them."""

from __future__ import annotations

import asyncio
import base64

from aurora_operator import kubernetes_api
from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import KubernetesApi, Object


async def find_secret(api: KubernetesApi, namespace: str, name: str) -> Object | None:
    """The Secret, or None when it does not exist. Raises :class:`KubernetesError`."""
    try:
        return await asyncio.to_thread(api.get, kubernetes_api.SECRET, namespace, name)
    except NotFound:
        return None


def secret_value(secret: Object, key: str) -> str:
    """The decoded value of ``key``; empty when the Secret does not have it."""
    return base64.b64decode((secret.get("data") or {}).get(key, "")).decode()
