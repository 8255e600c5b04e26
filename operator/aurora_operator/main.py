"""Connects kopf, the tasks and the Lease.

kopf is the engine: it watches, wakes, starts and stops us, reacts to signals, answers the liveness probe and posts
Events. Leading *is* running kopf. So a standby watches nothing, and a lost Lease ends the process.

Invariants: no kopf handler writes, and kopf keeps no progress, annotation or finalizer on our objects. So a speculator
can be deleted while the operator is down. kopf ends the process on an error in a watch other than HTTP 410. Kubernetes
restarts the process, and pods serve meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Mapping
from typing import Any

import aiohttp
import kopf
from aiohttp import web
from kubernetes.aio.client import ApiClient
from prometheus_client import disable_created_metrics, start_http_server

from aurora_operator.children.metadata import COMMON_LABELS, INSTANCE_LABEL
from aurora_operator.errors import UNAVAILABLE_STATUSES, ConfigError, KubernetesError, NotLeading
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import CHILDREN, SPECULATOR, KubernetesApi, Object, Resource, connect
from aurora_operator.leadership import run_while_leading
from aurora_operator.observe.stored_resource import seems_at_rest
from aurora_operator.operator_config import OPERATOR_NAME, OperatorConfig
from aurora_operator.reconciler import Reconciler
from aurora_operator.speculator_tasks import SpeculatorTasks
from aurora_protocol.agent_client import AgentClient

log = logging.getLogger(__name__)

HEALTH_PATH = "/healthz"
_CHATTY = ("kopf", "urllib3", "botocore", "boto3", "aiohttp")


def handler_registry(tasks: SpeculatorTasks) -> kopf.OperatorRegistry:
    """kopf's handlers: each event of a speculator or of a child wakes the speculator's task.

    ``type`` is kopf's name. It is None for an object that a list told of.
    """

    async def stop(**_: Any) -> None:
        await tasks.stop()

    async def speculator_changed(type: str | None, namespace: str, name: str, body: Object, **_: Any) -> None:  # noqa: A002
        tasks.wake(namespace, name, at_rest=type is None and seems_at_rest(body))

    async def child_changed(type: str | None, namespace: str, labels: Mapping[str, str], **_: Any) -> None:  # noqa: A002
        if name := labels.get(INSTANCE_LABEL):
            (tasks.child_listed if type is None else tasks.wake)(namespace, name)

    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(kopf.login_via_client)
    kopf.on.startup(registry=registry)(_configure)
    kopf.on.cleanup(registry=registry)(stop)
    kopf.on.event(*_selector(SPECULATOR), registry=registry)(speculator_changed)
    for resource in CHILDREN:
        kopf.on.event(*_selector(resource), id=resource.plural, registry=registry)(child_changed)
    return registry


class _NoComparison:
    """A ``kopf.DiffBaseStorage`` that copies no object. The copies tell handlers what changed, and ours do not ask."""

    def build(self, **_: Any) -> dict[str, Any]:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None: ...


async def _configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.scanning.disabled = True
    settings.posting.reporting_component = OPERATOR_NAME
    settings.posting.event_name_prefix = "aurora-"
    settings.networking.request_timeout = 30
    settings.watching.chunk_size = 250
    settings.persistence.diffbase_storage = _NoComparison()
    for resource in CHILDREN:
        labels = ",".join(f"{key}={value}" for key, value in COMMON_LABELS.items())
        settings.watching.label_selectors[_selector(resource)] = labels


def _selector(resource: Resource) -> tuple[str, str, str]:
    """Group, version and plural, as kopf names a resource. The core group is empty."""
    group, _, version = resource.api_version.rpartition("/")
    return group, version, resource.plural


async def run(config: OperatorConfig) -> None:
    """Wait for the Lease as a standby, then reconcile until the process is asked to stop.

    Raises :class:`NotLeading` when the Lease was lost.
    """
    loop = asyncio.get_running_loop()
    running = asyncio.current_task()
    assert running is not None, "a coroutine that runs has a task"
    loop.add_signal_handler(signal.SIGTERM, running.cancel)  # kopf replaces it while this replica leads
    standby = await _answer_probes(config.health_port)

    async def lead() -> None:
        await standby.cleanup()  # kopf answers the probes on the same port from now on
        async with await connect() as own:  # the Lease is never renewed late because other calls take all connections
            await _reconcile_all(config, own)

    log.info("this replica is a standby until it gets the Lease")
    async with await connect() as api:
        with contextlib.suppress(asyncio.CancelledError):
            await run_while_leading(
                lead,
                api,
                namespace=config.operator_namespace,
                name=config.lease_name,
                identity=config.replica,
                lease_seconds=config.lease_seconds,
            )


async def _reconcile_all(config: OperatorConfig, client: ApiClient) -> None:
    """Run kopf until it stops."""
    api, fleet = KubernetesApi(client), Fleet()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # thousands of pods are called, each now and then
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        agents = AgentClient(session)
        tasks = SpeculatorTasks(lambda namespace, name: Reconciler(api, agents, config, fleet, namespace, name))
        namespaces = await _readable(api, config.watch_namespaces)
        log.info("watching %s", ", ".join(namespaces) or "all namespaces")
        await kopf.operator(
            registry=handler_registry(tasks),
            standalone=True,
            clusterwide=not config.watch_namespaces,
            namespaces=namespaces,
            liveness_endpoint=f"http://0.0.0.0:{config.health_port}{HEALTH_PATH}",
        )


async def _readable(api: KubernetesApi, namespaces: tuple[str, ...]) -> tuple[str, ...]:
    """The ``namespaces`` in which the API server lets us list speculators; none: all namespaces.

    One namespace that was deleted together with our Role would otherwise end kopf, and so stop the others. Without the
    resource definition (CRD), kopf would watch the children only, and never look for the definition again. Raises
    :class:`ConfigError` when speculators can be listed nowhere, and :class:`KubernetesError` when the API server cannot
    answer now.
    """
    readable = list[str]()
    for namespace in namespaces or ("",):
        try:
            await api.list(SPECULATOR, namespace)
        except KubernetesError as error:
            if error.status in UNAVAILABLE_STATUSES:
                raise
            place = namespace or "all namespaces"
            log.warning("speculators in %s cannot be listed and are left out until a restart: %s", place, error)
        else:
            readable.append(namespace)
    if not readable:
        text = f"the API server does not list speculators in {', '.join(namespaces) or 'all namespaces'}"
        raise ConfigError(f"{text}; check that the resource definition (CRD) is installed, and the operator's Roles")
    return tuple(filter(None, readable))


async def _answer_probes(port: int) -> web.AppRunner:
    """Answer Kubernetes' probes while this replica is a standby."""

    async def standby(_: web.Request) -> web.Response:
        return web.json_response({"standby": True})

    application = web.Application()
    application.add_routes([web.get(HEALTH_PATH, standby)])
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104 - the kubelet calls the pod's address
    return runner


def configure_logs(level: str) -> None:
    """Log JSON lines at ``level`` and above. Libraries that log much log at WARNING and above only."""
    kopf.configure(log_format=kopf.LogFormat.JSON)
    logging.getLogger().setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It calls each failed attempt an error. ``leadership`` logs the attempts.
    logging.getLogger("kubernetes.aio.leaderelection").setLevel(logging.CRITICAL)


def main() -> None:
    """Run the operator until it is stopped. Exits with an error message when a setting is missing."""
    try:
        config = OperatorConfig.from_env()
    except ConfigError as error:
        sys.exit(f"aurora-operator: {error}")
    configure_logs(config.log_level)
    # prometheus_client adds a series ``_created`` to each counter: three more of each speculator, which nobody reads.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    start_http_server(config.metrics_port)
    try:
        asyncio.run(run(config))
    except (NotLeading, ConfigError, KubernetesError) as error:
        log.warning("the process ends, and Kubernetes starts it again: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
