"""kopf wiring and nothing else: events wake loops.

Invariant: no handler here writes: kopf keeps no progress, annotation or finalizer on our objects, so that a speculator
can be deleted while the operator is down.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import kopf
from prometheus_client import start_http_server

from aurora_api import GROUP, PLURAL, VERSION
from aurora_operator.agent_client import AgentClient
from aurora_operator.children.common import INSTANCE, MANAGED
from aurora_operator.kubernetes_api import HttpKubernetesApi
from aurora_operator.logs import configure_logs
from aurora_operator.loop import Loops
from aurora_operator.operator_config import OperatorConfig

log = logging.getLogger(__name__)
CHILDREN = (("", "v1", "pods"), ("apps", "v1", "deployments"), ("apps", "v1", "statefulsets"), ("batch", "v1", "jobs"))
THREADS = 64


def build(config: OperatorConfig) -> kopf.OperatorRegistry:
    """The handlers, in a registry of their own."""
    registry = kopf.OperatorRegistry()
    wiring = _Wiring(config)
    kopf.on.login(registry=registry)(kopf.login_via_client)
    kopf.on.startup(registry=registry)(wiring.start)
    kopf.on.cleanup(registry=registry)(wiring.stop)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(wiring.speculator)
    for resource in CHILDREN:
        kopf.on.event(*resource, registry=registry, labels=MANAGED)(wiring.child)
    return registry


class _Wiring:
    """kopf's callbacks. They share the loops, which exist between start and stop."""

    def __init__(self, config: OperatorConfig) -> None:
        self._config = config
        self._seen: dict[str, tuple[int, dict[str, str]]] = {}
        self._session: aiohttp.ClientSession
        self._loops: Loops

    async def start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 360
        settings.watching.connect_timeout = 10
        settings.networking.request_timeout = 30
        for resource in CHILDREN:
            settings.watching.label_selectors[resource] = ",".join(f"{key}={value}" for key, value in MANAGED.items())
        # The API server's and the store's calls block; a store that hangs must not take all threads.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="io"))
        self._session = aiohttp.ClientSession()
        self._loops = Loops(HttpKubernetesApi.connect(), AgentClient(self._session), self._config)
        log.info("started, watching %s", ", ".join(self._config.watch_namespaces) or "all namespaces")

    async def stop(self, **_: Any) -> None:
        await self._loops.stop()
        await self._session.close()

    async def speculator(self, namespace: str, name: str, uid: str, meta: kopf.Meta, **event: Any) -> None:
        """Our own status writes come back as events; only what a user changed is worth a look."""
        if event["type"] == "DELETED":
            self._seen.pop(uid, None)
            self._loops.wake(namespace, name)
        elif self._seen.get(uid) != (wanted := (meta["generation"], dict(meta.get("annotations") or {}))):
            self._seen[uid] = wanted
            self._loops.wake(namespace, name, start=True)

    async def child(self, namespace: str, labels: kopf.Labels, **_: Any) -> None:
        self._loops.wake(namespace, labels.get(INSTANCE, ""))


def main() -> None:
    config = OperatorConfig.from_env()
    configure_logs(config.log_level)
    start_http_server(config.metrics_port)
    kopf.run(
        registry=build(config),
        standalone=True,
        clusterwide=not config.watch_namespaces,
        namespaces=config.watch_namespaces,
        liveness_endpoint=f"http://0.0.0.0:{config.liveness_port}/healthz",
    )


if __name__ == "__main__":
    main()
