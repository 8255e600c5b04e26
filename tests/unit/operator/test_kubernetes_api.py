"""Each call has a deadline, is counted, and fails as a :class:`KubernetesError`. The server is a fake on HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration
from prometheus_client import REGISTRY

from aurora_operator import kubernetes_api
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.kubernetes_api import PAGE_SIZE, POD, SPECULATOR, KubernetesApi, refusal
from tests.unit.connections import settled_connections

STORED = {
    "apiVersion": SPECULATOR.api_version,
    "kind": SPECULATOR.kind,
    "metadata": {"name": "chat", "namespace": "team", "uid": "u", "resourceVersion": "7"},
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def api_of(answer: Answer) -> AsyncIterator[KubernetesApi]:
    """A client of a server that answers every call with ``answer``."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(application) as server:
        configuration = Configuration()
        configuration.host = str(server.make_url("")).rstrip("/")
        async with ApiClient(configuration) as client:
            yield KubernetesApi(client)
        await settled_connections()


async def test_a_list_comes_in_pages_and_its_objects_have_their_kind() -> None:
    asked = list[dict[str, str]]()

    async def answer(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        first = "continue" not in request.query
        metadata = {"continue": "more"} if first else {}
        return web.json_response({"metadata": metadata, "items": [{"metadata": {"name": "a" if first else "b"}}]})

    async with api_of(answer) as api:
        pods = await api.list(POD, "team", "app=x")
    assert [(pod["kind"], pod["metadata"]["name"]) for pod in pods] == [("Pod", "a"), ("Pod", "b")]
    query = {"limit": str(PAGE_SIZE), "labelSelector": "app=x"}
    assert asked == [query, {**query, "continue": "more"}]


async def test_writes_are_strict_and_fenced_and_each_call_is_counted() -> None:
    calls = list[tuple[str, str, dict[str, str], Any]]()

    async def answer(request: web.Request) -> web.Response:
        calls.append((request.method, request.path, dict(request.query), await request.json()))
        return web.json_response(STORED)

    def counted(verb: str, resource: str) -> float:
        labels = {"verb": verb, "resource": resource}
        return REGISTRY.get_sample_value("aurora_api_calls_total", labels) or 0.0

    before = counted("apply", "auroraspeculators/status"), counted("delete", "auroraspeculators")
    async with api_of(answer) as api:
        await api.apply(STORED, subresource="status")
        await api.patch(STORED, {"metadata": {"finalizers": []}})
        await api.delete(STORED)
    place = "/apis/aurora.dev/v1alpha1/namespaces/team/auroraspeculators/chat"
    strict = {"fieldManager": "aurora-operator", "fieldValidation": "Strict"}
    applied, patched, deleted = calls
    assert applied == ("PATCH", f"{place}/status", {**strict, "force": "true"}, STORED)
    assert patched == ("PATCH", place, strict, {"metadata": {"finalizers": [], "resourceVersion": "7"}})
    assert deleted[3]["preconditions"] == {"uid": "u"}
    after = counted("apply", "auroraspeculators/status"), counted("delete", "auroraspeculators")
    assert after == (before[0] + 1, before[1] + 1)


async def hangs(_: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def hangs_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def hangs_halfway(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"{")
    return await hangs(request)


async def speaks_html(_: web.Request) -> web.Response:
    return web.Response(text="<html>a proxy</html>")


@pytest.mark.parametrize("answer", [hangs, hangs_up, hangs_halfway, speaks_html])
async def test_a_server_that_does_not_answer_as_it_should_is_unavailable(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_api, "CALL_SECONDS", 0.2)
    async with api_of(answer) as api:
        with pytest.raises(KubernetesError) as raised:
            await api.get(POD, "team", "p0")
    assert raised.value.status == 0


async def test_reads_wait_for_their_turn_in_no_deadline_and_behind_no_write_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kubernetes_api, "MAX_READS", 2)
    monkeypatch.setattr(kubernetes_api, "CALL_SECONDS", 4.0)
    at_once, most = 0, 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal at_once, most
        if request.method != "GET":
            await asyncio.sleep(60)
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.5)
        at_once -= 1
        return web.json_response({"metadata": {}, "items": []})

    async with api_of(answer) as api:
        hanging = [asyncio.create_task(api.apply(STORED)) for _ in range(4)]
        await asyncio.gather(*(api.list(POD, "team") for _ in range(20)))  # the last ones wait for longer than 4 s
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
    assert most == 2


async def test_an_object_that_is_not_there_is_none_to_find_and_no_error_to_delete() -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"message": "not found"}, status=404)

    async with api_of(answer) as api:
        assert await api.find(POD, "team", "p0") is None
        await api.delete(STORED)
        with pytest.raises(NotFound):
            await api.get(POD, "team", "p0")


@pytest.mark.parametrize(("status", "kind"), [(403, KubernetesError), (404, NotFound), (409, Conflict)])
def test_the_text_of_a_refusal_is_bounded_and_on_one_line(status: int, kind: type[KubernetesError]) -> None:
    """A webhook may answer with any text, and each retry logs it."""
    error = refusal("POST jobs", status, json.dumps({"message": "denied\n" + "no! " * 20_000}).encode())
    assert (type(error), error.status) == (kind, status)
    assert str(error).startswith("denied no! no!")
    assert len(str(error)) == 300


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"", b'{"message": "", "details": null}'])
def test_a_refusal_without_a_text_names_the_call(body: bytes) -> None:
    assert str(refusal("POST jobs", 500, body)) == "POST jobs: HTTP 500"
