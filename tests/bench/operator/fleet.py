"""The speculators of a run as the bench sees them: the newest objects, and waiting for a change of one.

Times are those of the bench's event loop, read when a watch event arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.operator.api_client import Object

Predicate = Callable[[Object], bool]


@dataclass(frozen=True, order=True)
class Speculator:
    """One speculator of the run."""

    namespace: str
    name: str

    @property
    def path(self) -> str:
        return f"/apis/aurora.dev/v1alpha1/namespaces/{self.namespace}/auroraspeculators/{self.name}"


PER_NAMESPACE = 10
"""Speculators in one namespace, as in KubeRay's performance test."""


def speculators(count: int) -> list[Speculator]:
    """``count`` speculators, ten to a namespace."""
    return [Speculator(f"bench-{i // PER_NAMESPACE:03d}", f"spec-{i:04d}") for i in range(count)]


@dataclass
class Watched:
    """The newest object of each speculator, filled by a watch."""

    objects: dict[Speculator, Object] = field(default_factory=dict)
    _waiting: dict[Speculator, list[tuple[Predicate, asyncio.Future[float]]]] = field(default_factory=dict)

    def handle(self, kind: str, obj: Object) -> None:
        """Take one watch event."""
        key = Speculator(obj["metadata"]["namespace"], obj["metadata"]["name"])
        if kind == "DELETED":
            self.objects.pop(key, None)
            return
        self.objects[key] = obj
        waiting = self._waiting.get(key)
        if not waiting:
            return
        now = asyncio.get_running_loop().time()
        for predicate, future in waiting:
            if not future.done() and predicate(obj):
                future.set_result(now)
        self._waiting[key] = [each for each in waiting if not each[1].done()]

    async def until(self, key: Speculator, predicate: Predicate, timeout_seconds: float) -> float:
        """The loop's time at which the object satisfied ``predicate``. Raises ``TimeoutError``."""
        loop = asyncio.get_running_loop()
        known = self.objects.get(key)
        if known is not None and predicate(known):
            return loop.time()
        future: asyncio.Future[float] = loop.create_future()
        self._waiting.setdefault(key, []).append((predicate, future))
        async with asyncio.timeout(timeout_seconds):
            return await future


@dataclass
class Fleet:
    """All speculators of a run."""

    members: list[Speculator]
    replicas: int
    resources: Watched = field(default_factory=Watched)
    deployments: Watched = field(default_factory=Watched)

    def ready(self) -> int:
        """How many speculators say that every pod serves the version that it should."""
        return sum(is_ready(self.resources.objects.get(each), self.replicas) for each in self.members)

    async def until_ready(self, timeout_seconds: float, progress: Callable[[str], None]) -> float:
        """Wait until every speculator is ready. Returns the loop's time. Raises ``TimeoutError``."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout_seconds):
            while (count := self.ready()) < len(self.members):
                progress(f"{count} of {len(self.members)} speculators are ready")
                await asyncio.sleep(0.2 if len(self.members) < 100 else 1.0)
        return loop.time()


def is_ready(resource: Object | None, replicas: int) -> bool:
    """Whether the status is about the present spec, is Ready, and counts every pod."""
    status: dict[str, Any] = (resource or {}).get("status") or {}
    if not resource or status.get("observedGeneration") != resource["metadata"]["generation"]:
        return False
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ())
    return ready and status.get("updated") == f"{replicas}/{replicas}"


def ready_replicas(count: int) -> Predicate:
    """Whether a speculator's status counts ``count`` ready pods."""
    return lambda resource: (resource.get("status") or {}).get("readyReplicas") == count


def surge(value: int) -> Predicate:
    """Whether a Deployment has ``value`` as its ``maxSurge``."""
    return lambda deployment: deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == value
