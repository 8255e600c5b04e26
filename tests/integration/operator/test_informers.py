"""Informers against a real API server: the cache ends in the API server's state after every fault."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes import config as kube_config

from aurora_api.crd import FILE
from aurora_operator import kubernetes_api
from aurora_operator.children.metadata import COMMON_LABELS, INSTANCE_LABEL
from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import API_CALLS, SERVICE_ACCOUNT, WATCHED, HttpKubernetesApi, Object
from aurora_operator.observe.cluster_cache import ClusterCache
from aurora_operator.watch.api_stream import ApiStream
from aurora_operator.watch.informer import Informer
from aurora_operator.watch.informers import Informers
from tests.integration.operator.api_server_faults import network, restarted
from tests.rig.api_server import ApiServer, api_server

NAMESPACE = "default"
LABELS = ",".join(f"{key}={value}" for key, value in COMMON_LABELS.items())
BOUND_SECONDS = 30.0


@pytest.fixture(scope="module", name="shared_server")
def _shared_server() -> Iterator[ApiServer]:
    with api_server() as running:
        yield running


@pytest.fixture(name="server")
def _server(shared_server: ApiServer) -> Iterator[ApiServer]:
    """A server without the ServiceAccounts of earlier tests."""
    yield shared_server
    shared_server.kubectl("delete", "serviceaccounts", "-n", NAMESPACE, "-l", LABELS)


@pytest.fixture(name="own_server")
def _own_server() -> Iterator[ApiServer]:
    """A server that a test may restart."""
    with api_server() as running:
        yield running


def configuration(server: ApiServer, port: int | None = None) -> client.Configuration:
    made = client.Configuration()
    kube_config.load_kube_config(str(server.kubeconfig), client_configuration=made)
    if port is not None:
        made.host = f"https://127.0.0.1:{port}"
        made.refresh_api_key_hook = None  # the hook would bring back the host of the kubeconfig
    return made


def account(name: str) -> Object:
    labels = {**COMMON_LABELS, INSTANCE_LABEL: "chat"}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


@dataclass
class Rig:
    """An informer of ServiceAccounts, and another client of the same API server."""

    cache: ClusterCache
    informer: Informer
    other: HttpKubernetesApi
    woken: list[str] = field(default_factory=list)

    async def create(self, *names: str) -> None:
        for name in names:
            await asyncio.to_thread(self.other.create, account(name))

    async def delete(self, *names: str) -> None:
        for name in names:
            found = await asyncio.to_thread(self.other.get, SERVICE_ACCOUNT, NAMESPACE, name)
            uid = found["metadata"]["uid"]
            await asyncio.to_thread(self.other.delete, SERVICE_ACCOUNT, NAMESPACE, name, uid)

    async def agrees(self) -> None:
        """Wait until the cache holds exactly what the API server has."""

        async def both() -> tuple[Any, Any]:
            listed = await asyncio.to_thread(self.other.list, SERVICE_ACCOUNT, NAMESPACE, LABELS)
            there = {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in listed}
            cached = self.cache.children(NAMESPACE, "chat").values()
            return there, {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in cached}

        async with asyncio.timeout(BOUND_SECONDS):
            while len({str(sorted(state.items())) for state in await both()}) > 1:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def informing(server: ApiServer, *, port: int | None = None, read_seconds: float = 90.0) -> AsyncIterator[Rig]:
    """An informer, connected to ``server`` over ``port``, that has its first list."""
    stream = ApiStream(configuration(server, port), read_seconds=read_seconds)
    cache, woken = ClusterCache(["ServiceAccount"]), list[str]()
    informer = Informer(stream, cache, SERVICE_ACCOUNT, "", LABELS, lambda _, name: woken.append(name))
    rig = Rig(cache, informer, HttpKubernetesApi(client.ApiClient(configuration(server))), woken)
    task = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            await informer.synced.wait()
        yield rig
    finally:
        async with asyncio.timeout(2):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await stream.close()


def calls(verb: str) -> float:
    """Calls of ServiceAccounts by informers and clients of this process so far."""
    return float(API_CALLS.labels(verb, "serviceaccounts")._value.get())


def connections_to(port: int) -> int:
    """Established TCP connections of this network namespace to ``port`` (proc_net_tcp(5): 01 is ESTABLISHED)."""
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[2].rpartition(":")[2], 16) == port and row[3] == "01" for row in rows)


async def eventually(holds: Callable[[], bool], seconds: float = BOUND_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.05)


async def test_changes_arrive_and_wake_the_speculator(server: ApiServer) -> None:
    async with informing(server) as rig:
        await rig.create("a", "b")
        await rig.agrees()
        await rig.delete("a")
        await rig.agrees()
        assert set(rig.woken) == {"chat"}
        assert len(rig.woken) == 3


async def test_a_large_list_comes_in_pages(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "PAGE_SIZE", 10)
    other = HttpKubernetesApi(client.ApiClient(configuration(server)))
    for number in range(25):
        other.create(account(f"page-{number}"))
    before = calls("list")
    async with informing(server) as rig:
        assert calls("list") - before == 3
        await rig.agrees()
        assert rig.cache.counts["ServiceAccount"] == 25


async def test_a_cut_watch_resumes_without_a_list_and_misses_no_deletion(server: ApiServer) -> None:
    async with network(server) as path, informing(server, port=path.port) as rig:
        await rig.create("a", "b")
        await rig.agrees()
        path.cut()
        await rig.create("c")
        await rig.delete("a")
        await asyncio.sleep(1)
        lists = calls("list")
        path.restore()
        await eventually(
            lambda: (
                len(rig.cache.children(NAMESPACE, "chat")) == 2 and not rig.cache.get("ServiceAccount", NAMESPACE, "a")
            )
        )
        assert calls("list") == lists
        await rig.agrees()


async def test_a_dead_connection_is_noticed(server: ApiServer) -> None:
    async with network(server) as path, informing(server, port=path.port, read_seconds=2.0) as rig:
        path.stall()
        await rig.create("a")
        await eventually(lambda: rig.cache.get("ServiceAccount", NAMESPACE, "a") is not None)


async def test_a_watch_that_is_left_ends_its_connection_although_the_api_server_does_not_answer(
    server: ApiServer,
) -> None:
    async with network(server) as path:
        async with informing(server, port=path.port) as rig:
            await rig.create("a")
            await rig.agrees()
            assert connections_to(path.port) > 0
            path.stall()
        await eventually(lambda: connections_to(path.port) == 0, 2)


async def test_a_list_that_is_left_before_its_answer_ends_its_connection(server: ApiServer) -> None:
    async with network(server) as path:
        stream = ApiStream(configuration(server, path.port))
        await stream.list_page(SERVICE_ACCOUNT, NAMESPACE, LABELS, "")
        path.stall()  # the connection is kept for the next list
        left = asyncio.create_task(stream.list_page(SERVICE_ACCOUNT, NAMESPACE, LABELS, ""))
        await asyncio.sleep(0.2)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        async with asyncio.timeout(2):
            await stream.close()
        await eventually(lambda: connections_to(path.port) == 0, 2)


async def test_a_deletion_during_a_cut_is_found_although_the_api_server_lost_its_history(own_server: ApiServer) -> None:
    """A restarted API server has no history, answers a watch with HTTP 410, and the informer lists again."""
    async with network(own_server) as path, informing(own_server, port=path.port) as rig:
        await rig.create("a", "b")
        await rig.agrees()
        path.cut()
        with restarted(own_server):
            # As if the cut had begun long before: etcd could still serve the last few minutes.
            rig.cache._progress[rig.informer.scope] = 1
            await rig.create("c")
            await rig.delete("a")
            lists = calls("list")
            rig.woken.clear()
            path.restore()
            await eventually(lambda: rig.cache.get("ServiceAccount", NAMESPACE, "a") is None)
            assert calls("list") > lists
            await rig.agrees()
            assert rig.woken, "the deletion wakes the speculator"


async def test_an_informer_outlives_a_restart_of_the_api_server(own_server: ApiServer) -> None:
    async with informing(own_server) as rig:
        await rig.create("a")
        await rig.agrees()
        loop = asyncio.get_running_loop()
        context = restarted(own_server)
        await loop.run_in_executor(None, context.__enter__)
        try:
            await rig.create("b")
            await rig.agrees()
            await rig.delete("a", "b")
            await rig.agrees()
            assert rig.informer.silent_seconds < BOUND_SECONDS
        finally:
            context.__exit__(None, None, None)


async def test_an_own_write_is_read_at_once_and_a_late_answer_does_no_harm(server: ApiServer) -> None:
    async with informing(server) as rig:
        loop = asyncio.get_running_loop()
        writer = HttpKubernetesApi(client.ApiClient(configuration(server)), lambda obj: _put(loop, rig.cache, obj))
        answers = []
        for number in range(20):
            answers.append(await asyncio.to_thread(writer.create, account(f"own-{number}")))
            assert rig.cache.get("ServiceAccount", NAMESPACE, f"own-{number}") is not None
        for answer in answers:
            made = answer["metadata"]
            await asyncio.to_thread(writer.delete, SERVICE_ACCOUNT, NAMESPACE, made["name"], made["uid"])
        await rig.agrees()
        for answer in answers:
            rig.cache.put(answer)
        await rig.agrees()
        with pytest.raises(NotFound):
            writer.get(SERVICE_ACCOUNT, NAMESPACE, "own-0")


async def test_without_the_definition_the_informers_wait_and_with_it_they_are_complete(own_server: ApiServer) -> None:
    """A tenant's operator watches its own namespaces only."""
    for namespace in ("team-a", "team-b", "another"):
        own_server.kubectl("create", "namespace", namespace)
        own_server.apply(account("a") | {"metadata": account("a")["metadata"] | {"namespace": namespace}})
    cache = ClusterCache(resource.kind for resource in WATCHED)
    stream = ApiStream(configuration(own_server))
    informers = Informers(stream, cache, ["team-a", "team-b"], lambda namespace, name: None)
    informers.start()
    try:
        synced = asyncio.create_task(informers.wait_until_synced())
        await asyncio.sleep(1)
        assert not synced.done(), "no loop may run on half of the objects"
        own_server.kubectl("apply", "--server-side", "-f", FILE)
        async with asyncio.timeout(60):
            await synced
        assert cache.counts["ServiceAccount"] == 2
        assert list(informers.silent(3600)) == []
        assert not cache.children("another", "chat")
    finally:
        async with asyncio.timeout(2):
            await informers.stop()


def _put(loop: asyncio.AbstractEventLoop, cache: ClusterCache, obj: Object) -> None:
    loop.call_soon_threadsafe(cache.put, obj)
