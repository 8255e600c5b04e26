"""Connects kopf, the informers and the loops.

kopf is the operator's frame: it logs in, starts and stops us, reacts to signals, and ends the process when a part of it
fails. kopf does not watch. Its watch ends the whole operator on an error that is not
HTTP 410, does not tell which objects a list contains, and therefore never reports a deletion that happened while the
watch was down. The informers of :mod:`aurora_operator.watch` do, and fill the cache that the loops read.

Invariants: no kopf handler writes. kopf keeps no progress, annotation or finalizer on our objects, so a speculator can
be deleted while the operator is down. No loop runs before the cache is complete in its namespace, nor while another
replica leads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import kopf
from prometheus_client import disable_created_metrics, start_http_server

from aurora_operator import metrics
from aurora_operator.act.authority import Authority
from aurora_operator.errors import ConfigError
from aurora_operator.health import HealthServer
from aurora_operator.io_pools import api_threads
from aurora_operator.kubernetes_api import NAMESPACE, WATCHED, HttpKubernetesApi, Object
from aurora_operator.lead.election_thread import run_election
from aurora_operator.lead.leadership import LEASE_TIMEOUT_SECONDS, LeaderElector
from aurora_operator.logs import configure_logs
from aurora_operator.loop_registry import LoopRegistry
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.process_memory import keep_memory_small
from aurora_operator.watch.api_stream import ApiStream
from aurora_operator.watch.informers import Informers
from aurora_protocol.agent_client import AgentClient

log = logging.getLogger(__name__)


def handler_registry(config: OperatorConfig) -> kopf.OperatorRegistry:
    """kopf's registry with our handlers."""
    registry = kopf.OperatorRegistry()
    operator = Operator(config)
    kopf.on.login(registry=registry)(kopf.login_via_client)
    kopf.on.startup(registry=registry)(operator.start)
    kopf.on.cleanup(registry=registry)(operator.stop)
    return registry


class Operator:
    """The parts of this process between :meth:`start` and :meth:`stop`, which kopf calls."""

    def __init__(self, config: OperatorConfig) -> None:
        self._config = config
        self._cache = ClusterCache(resource.kind for resource in (*WATCHED, NAMESPACE))
        self._session: aiohttp.ClientSession
        self._informers: Informers
        self._loops: LoopRegistry
        self._elector: LeaderElector
        self._health = HealthServer(self.problems, self.is_ready)
        self._lead_task: asyncio.Task[None]

    async def start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        """Start the informers, and the loops once the cache is complete. Does not wait for the API server."""
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.networking.request_timeout = 30
        loop = asyncio.get_running_loop()
        loop.set_default_executor(api_threads())
        self._session = agent_session()
        self._elector = LeaderElector(HttpKubernetesApi.connect(timeout_seconds=LEASE_TIMEOUT_SECONDS), self._config)
        api = HttpKubernetesApi.connect(on_write=self._put_from_any_thread(loop), around_write=self._elector.acting)
        authority = Authority(api, self._config, self._elector.ensure_leading)
        agents = AgentClient(self._session)
        self._loops = LoopRegistry(api, self._cache, agents, self._config, authority)
        stream, namespaces = ApiStream(api.configuration), self._config.watch_namespaces
        self._informers = Informers(stream, self._cache, namespaces, self._loops.wake, self._config.shard)
        metrics.count_cache_objects(self._cache)
        self._informers.start()
        await self._health.start(self._config.health_port)
        self._lead_task = asyncio.create_task(self._lead(), name="lead")
        self._lead_task.add_done_callback(_stop_process_on_error)
        everywhere = f"the namespaces of shard {self._config.shard}" if self._config.shard else "all namespaces"
        log.info("started, watching %s", ", ".join(namespaces) or everywhere)

    async def stop(self, **_: Any) -> None:
        """Stop the loops, then release the Lease, so that another replica leads at once."""
        self._lead_task.cancel()
        await asyncio.gather(self._lead_task, return_exceptions=True)
        await self._health.stop()
        await self._informers.stop()
        await self._session.close()

    def problems(self) -> Sequence[str]:
        """A sentence about each loop and informer that does not turn, and about the election."""
        informers = self._informers.silent(self._elector.answered_seconds)
        return [*informers, *self._loops.overdue(), *self._elector.silent()]

    def is_ready(self) -> bool:
        """Whether this replica could lead: its cache is complete."""
        return self._informers.synced

    async def _lead(self) -> None:
        """Compete for the Lease once the cache is complete, and run the loops while this replica leads."""
        await self._informers.wait_until_synced()
        await run_election(self._elector, self._loops.start, self._loops.stop)

    def _put_from_any_thread(self, loop: asyncio.AbstractEventLoop) -> Callable[[Object], None]:
        """Writes run in threads, and the cache belongs to the event loop.

        The loop runs its callbacks in order. A write's answer is therefore in the cache before the writer goes on.
        """

        def put(obj: Object) -> None:
            # The loop is closed already when a write outlives the operator.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._cache.put, obj)

        return put


def agent_session() -> aiohttp.ClientSession:
    """The session for calls of agents. It keeps no connection: those to ten thousand pods would take 70 MB.

    It keeps no cookie of an agent either. :class:`AgentClient` bounds the calls under way.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _stop_process_on_error(election: asyncio.Task[None]) -> None:
    """End the process when the election ended by an error: without an election this replica would wait for ever."""
    if not election.cancelled() and (error := election.exception()) is not None:
        log.error("the election failed unexpectedly, the process ends", exc_info=error)
        signal.raise_signal(signal.SIGTERM)


def main() -> None:
    """Run the operator until it is stopped. Exits with an error message when a setting is missing."""
    try:
        config = OperatorConfig.from_env()
    except ConfigError as error:
        sys.exit(f"aurora-operator: {error}")
    configure_logs(config.log_level)
    keep_memory_small()
    # prometheus_client adds a series ``_created`` to each counter: three more of each speculator, which nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    start_http_server(config.metrics_port)
    kopf.run(
        registry=handler_registry(config),
        standalone=True,
        clusterwide=not config.watch_namespaces,
        namespaces=config.watch_namespaces,
    )


if __name__ == "__main__":
    main()
