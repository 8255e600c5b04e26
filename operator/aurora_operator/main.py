"""Connects kopf to the loops: events wake loops, and nothing else happens here.

Invariant: no handler writes. kopf keeps no progress, annotation or finalizer on our objects, so a speculator can be
deleted while the operator is down.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import kopf
from prometheus_client import start_http_server

from aurora_api import GROUP, PLURAL, VERSION
from aurora_operator.children.metadata import COMMON_LABELS, INSTANCE_LABEL
from aurora_operator.errors import ConfigError
from aurora_operator.kubernetes_api import HttpKubernetesApi
from aurora_operator.logs import configure_logs
from aurora_operator.loop_registry import LoopRegistry
from aurora_operator.operator_config import OperatorConfig
from aurora_protocol.agent_client import AgentClient

log = logging.getLogger(__name__)
WATCHED_CHILDREN = (
    ("", "v1", "pods"),
    ("apps", "v1", "deployments"),
    ("batch", "v1", "jobs"),
)
IO_THREADS = 64
"""Calls of the API server and the store block a thread. A store that hangs must not occupy all threads."""


def handler_registry(config: OperatorConfig) -> kopf.OperatorRegistry:
    """kopf's registry with our handlers."""
    registry = kopf.OperatorRegistry()
    handlers = EventHandlers(config)
    kopf.on.login(registry=registry)(kopf.login_via_client)
    kopf.on.startup(registry=registry)(handlers.start)
    kopf.on.cleanup(registry=registry)(handlers.stop)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)(handlers.on_speculator)
    for resource in WATCHED_CHILDREN:
        kopf.on.event(*resource, registry=registry, labels=COMMON_LABELS)(handlers.on_child)
    return registry


class EventHandlers:
    """kopf's callbacks. The loops exist between :meth:`start` and :meth:`stop`."""

    def __init__(self, config: OperatorConfig) -> None:
        self._config = config
        self._last_seen: dict[str, tuple[int, dict[str, str]]] = {}
        """Speculator's uid -> its generation and annotations."""
        self._session: aiohttp.ClientSession
        self._loops: LoopRegistry

    async def start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 360
        settings.watching.connect_timeout = 10
        settings.networking.request_timeout = 30
        labels = ",".join(f"{key}={value}" for key, value in COMMON_LABELS.items())
        for resource in WATCHED_CHILDREN:
            settings.watching.label_selectors[resource] = labels
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io"))
        self._session = aiohttp.ClientSession()
        self._loops = LoopRegistry(HttpKubernetesApi.connect(), AgentClient(self._session), self._config)
        log.info("started, watching %s", ", ".join(self._config.watch_namespaces) or "all namespaces")

    async def stop(self, **_: Any) -> None:
        await self._loops.stop()
        await self._session.close()

    async def on_speculator(self, namespace: str, name: str, uid: str, meta: kopf.Meta, **event: Any) -> None:
        """Wake the loop when a user changed the spec or an annotation. Our own status writes come here too."""
        if event["type"] == "DELETED":
            self._last_seen.pop(uid, None)
            self._loops.wake(namespace, name)
            return
        current = (meta["generation"], dict(meta.get("annotations") or {}))
        if self._last_seen.get(uid) != current:
            self._last_seen[uid] = current
            self._loops.wake(namespace, name, start=True)

    async def on_child(self, namespace: str, labels: kopf.Labels, **_: Any) -> None:
        """Wake the loop of the speculator that a child belongs to."""
        self._loops.wake(namespace, labels.get(INSTANCE_LABEL, ""))


def main() -> None:
    """Run the operator until it is stopped. Exits with an error message when a setting is missing."""
    try:
        config = OperatorConfig.from_env()
    except ConfigError as error:
        sys.exit(f"aurora-operator: {error}")
    configure_logs(config.log_level)
    start_http_server(config.metrics_port)
    kopf.run(
        registry=handler_registry(config),
        standalone=True,
        clusterwide=not config.watch_namespaces,
        namespaces=config.watch_namespaces,
        liveness_endpoint=f"http://0.0.0.0:{config.liveness_port}/healthz",
    )


if __name__ == "__main__":
    main()
