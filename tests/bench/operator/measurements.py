"""The measurements of one run: at rest, latencies of changes, and restarts; and the count of the API requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from tests.bench.operator.api_client import MERGE_PATCH, ApiClient
from tests.bench.operator.fleet import Fleet, Speculator, ready_replicas, surge
from tests.bench.operator.operator_process import OperatorProcess
from tests.bench.operator.stand_ins import AgentStandIns, KubeletStandIn
from tests.bench.operator.store_proxy import StoreProxy

CHANGE_TIMEOUT_SECONDS = 120.0
WHOLE_TIMEOUT_SECONDS = 900.0
CHANGES_DURING_OUTAGE = 10
CHANGES_PER_SECOND = 2.0
"""Mean rate at which changes begin."""
MAX_PAUSE_SECONDS = 1.0
POLL_SECONDS = 1.0
"""How often a restart is looked at, which bounds how exact the time of the last reconcile is."""
Row = dict[str, Any]


READ_VERBS, WRITE_VERBS = ("get", "list"), ("create", "update", "patch", "delete", "deletecollection")
ELECTION = "leases"
"""Leader election renews its Lease on a clock. These requests do not depend on the number of speculators."""


def audit_policy(user: str) -> str:
    """An audit policy that logs the requests of ``user`` alone, without bodies."""
    rules = [{"level": "Metadata", "users": [user]}, {"level": "None"}]
    made = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
    return json.dumps(made)


class AuditLog:
    """Counts the operator's API requests in the API server's audit log, whose entries name their user.

    Invariant: a request counts in the window in which the server received it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.begin()

    def begin(self) -> None:
        """Begin a window now."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._started = datetime.now(UTC)

    def requests(self, verbs: tuple[str, ...]) -> int:
        """The requests with one of ``verbs`` since :meth:`begin`, leader election excluded."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines()
        count = 0
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line may be cut short
                event = json.loads(line)
                received = datetime.fromisoformat(event["requestReceivedTimestamp"])
                resource = (event.get("objectRef") or {}).get("resource")
                ended = event["stage"] == "ResponseComplete" and received >= self._started
                count += ended and event["verb"] in verbs and resource != ELECTION
        return count


@dataclass
class Rig:
    """Everything that a measurement needs."""

    api: ApiClient
    fleet: Fleet
    kubelet: KubeletStandIn
    operator: OperatorProcess
    audit: AuditLog
    store: StoreProxy
    agents: AgentStandIns


async def at_rest(rig: Rig, seconds: float) -> Row:
    """What the operator does while nothing changes, per minute."""
    minutes = seconds / 60
    rig.audit.begin()
    store, agents, cpu_seconds = rig.store.calls, rig.agents.calls, rig.operator.cpu_seconds()
    await asyncio.sleep(seconds)
    return {
        "api_reads_per_minute": round(rig.audit.requests(READ_VERBS) / minutes, 2),
        "api_writes_per_minute": round(rig.audit.requests(WRITE_VERBS) / minutes, 2),
        "store_calls_per_minute": round((rig.store.calls - store) / minutes, 2),
        "agent_calls_per_minute": round((rig.agents.calls - agents) / minutes, 2),
        "cpu_seconds_per_minute": round((rig.operator.cpu_seconds() - cpu_seconds) / minutes, 3),
        "memory_mebibytes": rig.operator.memory_mebibytes(),
        "load": round(os.getloadavg()[0], 1),
    }


async def change_to_applied(rig: Rig, samples: int) -> Row:
    """Seconds from a change of a speculator's spec, as it is sent, to the Deployment that carries the change."""
    values = itertools.cycle((2, 3, 4, 5))

    async def change(key: Speculator) -> float:
        before = rig.fleet.deployments.objects[key]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        value = next(v for v in values if v != before)
        started = asyncio.get_running_loop().time()
        await set_surge(rig.api, key, value)
        applied = await rig.fleet.deployments.until(key, surge(value), CHANGE_TIMEOUT_SECONDS)
        return applied - started

    return latencies(await _sample(rig.fleet.members, samples, change))


async def set_surge(api: ApiClient, key: Speculator, value: int) -> None:
    """Change ``spec.serving.strategy.maxSurge``. The Deployment changes, and no pod is replaced."""
    await api.call("PATCH", key.path, {"spec": {"serving": {"strategy": {"maxSurge": value}}}}, MERGE_PATCH)


async def readiness_to_status(rig: Rig, samples: int) -> dict[str, Row]:
    """Seconds from a change of a pod's condition Ready, as it is sent, to the speculator's ``readyReplicas``."""
    lost: list[float] = []
    replicas = rig.fleet.replicas

    async def flap(key: Speculator) -> float:
        loop = asyncio.get_running_loop()
        pod = random.choice(sorted(rig.kubelet.pods[key]))  # noqa: S311 - any pod will do
        started = loop.time()
        await rig.kubelet.set_ready(key.namespace, pod, ready=False)
        seen = await rig.fleet.resources.until(key, ready_replicas(replicas - 1), CHANGE_TIMEOUT_SECONDS)
        lost.append(seen - started)
        await asyncio.sleep(random.uniform(0, MAX_PAUSE_SECONDS))  # noqa: S311 - not in step with the operator
        started = loop.time()
        await rig.kubelet.set_ready(key.namespace, pod, ready=True)
        return await rig.fleet.resources.until(key, ready_replicas(replicas), CHANGE_TIMEOUT_SECONDS) - started

    gained = await _sample(rig.fleet.members, samples, flap)
    return {"ready": latencies(gained), "not_ready": latencies(lost)}


async def _sample(
    members: Sequence[Speculator], samples: int, measure: Callable[[Speculator], Awaitable[float]]
) -> list[float]:
    """``samples`` results of ``measure``, spread over ``members``. A speculator is measured once at a time.

    Measurements begin at random times, whether or not earlier ones ended: a slow operator gets as much work as a fast
    one.
    """
    results: list[float] = []
    turns = {key: asyncio.Lock() for key in members}

    async def take(key: Speculator) -> None:
        async with turns[key]:
            results.append(await measure(key))

    async with asyncio.TaskGroup() as group:
        for key in itertools.islice(itertools.cycle(random.sample(members, len(members))), samples):
            group.create_task(take(key))
            await asyncio.sleep(random.expovariate(CHANGES_PER_SECOND))
    return results


async def restart(rig: Rig, progress: Callable[[str], None]) -> Row:
    """Kill the operator, change specs while it is away, and wait until everything is reconciled and applied."""
    loop = asyncio.get_running_loop()
    rig.operator.kill()
    changed = random.sample(rig.fleet.members, min(CHANGES_DURING_OUTAGE, len(rig.fleet.members)))
    values = {key: 7 + (rig.fleet.deployments.objects[key]["metadata"]["generation"] % 2) for key in changed}
    for key, value in values.items():
        await set_surge(rig.api, key, value)
    started = loop.time()
    rig.operator.start()
    async with asyncio.TaskGroup() as group:
        waits = [
            group.create_task(rig.fleet.deployments.until(key, surge(value), WHOLE_TIMEOUT_SECONDS))
            for key, value in values.items()
        ]
        reconciled = group.create_task(_all_reconciled(rig, progress))
    applied_seconds = max(wait.result() for wait in waits) - started
    reconciled_seconds = reconciled.result() - started
    return {
        "reconciled_seconds": round(reconciled_seconds, 2),
        "applied_seconds": round(applied_seconds, 2),
        "cpu_seconds": round(rig.operator.cpu_seconds(), 2),
        "memory_mebibytes": rig.operator.memory_mebibytes(),
    }


async def _all_reconciled(rig: Rig, progress: Callable[[str], None]) -> float:
    """The loop's time at which every speculator had been reconciled once."""
    loop = asyncio.get_running_loop()
    wanted = set(rig.fleet.members)
    async with aiohttp.ClientSession() as session, asyncio.timeout(WHOLE_TIMEOUT_SECONDS):
        while missing := wanted - await rig.operator.reconciled(session):
            progress(f"{len(wanted) - len(missing)} of {len(wanted)} speculators are reconciled")
            await asyncio.sleep(POLL_SECONDS)
    return loop.time()


def latencies(seconds: Sequence[float]) -> Row:
    """Percentiles by the nearest rank."""
    ranked = sorted(seconds)
    p50, p99 = (ranked[max(0, math.ceil(share * len(ranked)) - 1)] for share in (0.5, 0.99))
    return {"samples": len(ranked), "p50": round(p50, 3), "p99": round(p99, 3), "max": round(ranked[-1], 3)}
