"""Informers of a fake API server, with short waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import WATCHED, Resource
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.watch import informer as module
from aurora_operator.watch import informers as informers_module
from aurora_operator.watch.api_stream import Page, WatchEvent
from aurora_operator.watch.informers import Informers

BOOKMARK_SECONDS = 0.03


@dataclass
class FakeStream:
    """An API server whose lists are empty, and whose watches bring a bookmark now and then.

    It refuses to list some namespaces, or some kinds in them, or fails every call.
    """

    refused: set[tuple[str, str]] = field(default_factory=set)
    """Namespaces and kinds."""
    status: int = 403
    error: Exception | None = None
    """What every call raises."""
    listed: list[str] = field(default_factory=list)

    async def list_page(self, resource: Resource, namespace: str, labels: str, token: str, size: Any) -> Page:
        if self.error is not None:
            raise self.error
        if (namespace, resource.kind) in self.refused:
            raise KubernetesError(f"{resource.plural} is forbidden", self.status)
        self.listed.append(resource.kind)
        return Page((), 9, "")

    async def watch(self, resource: Resource, *_: Any) -> AsyncGenerator[WatchEvent]:
        while True:
            if self.error is not None:
                raise self.error
            yield WatchEvent("BOOKMARK", {"kind": resource.kind, "metadata": {"resourceVersion": "10"}})
            await asyncio.sleep(BOOKMARK_SECONDS)

    async def close(self) -> None:
        """Nothing is open."""


def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(module, "REFUSED_SECONDS", 0.1)
    monkeypatch.setattr(module, "RELIST_SPREAD_SECONDS", 0.01)
    monkeypatch.setattr(module, "RECONNECT_SPREAD_SECONDS", 0.01)
    monkeypatch.setattr(informers_module, "SYNC_POLL_SECONDS", 0.01)


def informers_of(stream: FakeStream, *namespaces: str) -> tuple[Informers, ClusterCache]:
    cache = ClusterCache(resource.kind for resource in WATCHED)
    api: Any = stream
    return Informers(api, cache, namespaces, lambda *_: None), cache


@contextlib.asynccontextmanager
async def informing(stream: FakeStream, *namespaces: str) -> AsyncIterator[tuple[Informers, ClusterCache]]:
    informers, cache = informers_of(stream, *namespaces)
    informers.start()
    try:
        yield informers, cache
    finally:
        await informers.stop()
