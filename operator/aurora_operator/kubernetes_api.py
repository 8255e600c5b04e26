"""The client of the API server for all but watches and the Lease: get, list, create, apply, patch and delete.

Objects are plain JSON. Server-side apply must send only the fields that we own, and typed models would send all other
fields as null.

Invariants: every call has a deadline and is counted. Every failure is a :class:`KubernetesError`. A field that the API
server does not know is refused, never dropped. No delete reaches an object other than the one that was observed,
because it carries that object's uid. Nothing is retried here: the next reconcile observes again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from prometheus_client import Counter

from aurora_api import API_VERSION, KIND, PLURAL
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.operator_config import OPERATOR_NAME
from aurora_store.errors import bounded_text

Object = dict[str, Any]
CALL_SECONDS = 30.0
"""Deadline of one call. A call of the API server usually takes milliseconds."""
MAX_READS = 16
"""Reads under way at a time. A connection with TLS takes 0.4 MB, and a new leader reads everything. Writes do not
count, because a webhook of one namespace may let them hang."""
PAGE_SIZE = 250
"""Objects per page of a list."""
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
API_CALLS = Counter(
    "aurora_api_calls",
    "Calls of the Kubernetes API, by verb (get, list, create, apply, patch or delete) and resource.",
    ("verb", "resource"),
)
_FIELDS = (("fieldManager", OPERATOR_NAME), ("fieldValidation", "Strict"))


@dataclass(frozen=True)
class Resource:
    """A kind of object and its place in the API."""

    kind: str
    api_version: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """The path of an object, or without ``name`` of all objects; without ``namespace`` of all namespaces."""
        prefix = "/api" if "/" not in self.api_version else "/apis"
        place = f"namespaces/{namespace}/" if namespace else ""
        return f"{prefix}/{self.api_version}/{place}{self.plural}" + (f"/{name}" if name else "")


SPECULATOR = Resource(KIND, API_VERSION, PLURAL)
DEPLOYMENT = Resource("Deployment", "apps/v1", "deployments")
JOB = Resource("Job", "batch/v1", "jobs")
POD = Resource("Pod", "v1", "pods")
SERVICE = Resource("Service", "v1", "services")
SECRET = Resource("Secret", "v1", "secrets")
SERVICE_ACCOUNT = Resource("ServiceAccount", "v1", "serviceaccounts")
DISRUPTION_BUDGET = Resource("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
NETWORK_POLICY = Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")

CHILDREN = (DEPLOYMENT, JOB, POD, SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY)
"""Kinds that carry our labels: kopf watches them, and a reconcile lists them. The operator may not list Secrets."""
_BY_KIND = {resource.kind: resource for resource in (*CHILDREN, SECRET, SPECULATOR)}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """The resource of an object's kind."""
    return _BY_KIND[obj["kind"]]


async def connect(kubeconfig: str | None = None) -> ApiClient:
    """A client with the pod's ServiceAccount, or outside of a cluster with ``kubeconfig`` or the user's own.

    Never through a proxy: ``HTTPS_PROXY`` is meant for the S3 store.
    """
    configuration = Configuration()
    try:
        kube_config.load_incluster_config(configuration)
    except kube_config.ConfigException:
        await kube_config.load_kube_config(kubeconfig, client_configuration=configuration)
    configuration.client_session_kwargs = {"trust_env": False, "cookie_jar": aiohttp.DummyCookieJar()}
    configuration.proxy = None
    client = ApiClient(configuration)
    client.user_agent = OPERATOR_NAME
    return client


class KubernetesApi:
    """The calls that observing and acting need. Each raises :class:`KubernetesError`."""

    def __init__(self, client: ApiClient) -> None:
        self._client, self._reads = client, asyncio.Semaphore(MAX_READS)

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """Raises :class:`NotFound`."""
        found: Object = await self._call("get", "GET", resource, namespace, name)
        return found

    async def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """The object, or None when it does not exist."""
        try:
            return await self.get(resource, namespace, name)
        except NotFound:
            return None

    async def list(self, resource: Resource, namespace: str, labels: str = "") -> list[Object]:
        """The objects with these labels, as the API server has them now.

        Labels do not prove whose objects these are.
        """
        found: list[Object] = []
        token = ""
        while True:
            query = [("limit", str(PAGE_SIZE)), ("labelSelector", labels), ("continue", token)]
            page = await self._call("list", "GET", resource, namespace, query=[part for part in query if part[1]])
            found += ({"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in page["items"])
            token = page["metadata"].get("continue") or ""
            if not token:
                return found

    async def create(self, obj: Object) -> Object:
        """Raises :class:`Conflict` when an object of that name exists."""
        resource, namespace = resource_of(obj), obj["metadata"]["namespace"]
        created: Object = await self._call("create", "POST", resource, namespace, query=_FIELDS, body=obj)
        return created

    async def apply(self, obj: Object, *, subresource: str = "") -> Object:
        """Server-side apply. Fields that others set and that ``obj`` does not contain are left alone.

        Raises :class:`Conflict` when ``obj`` carries a uid and no object exists (none is created), or a
        resourceVersion that is no longer the object's. A uid that is not the stored object's is refused as a conflict,
        or for some kinds as an invalid change (HTTP 422).
        """
        query = (*_FIELDS, ("force", "true"))
        return await self._write("apply", obj, obj, subresource=subresource, query=query, content=APPLY)

    async def patch(self, obj: Object, changes: Object, *, subresource: str = "") -> Object:
        """Merge ``changes`` into the object, whoever set these fields before. A field that is None is removed.

        Raises :class:`Conflict` when the object's resourceVersion is no longer that of ``obj``.
        """
        fence = {"resourceVersion": obj["metadata"]["resourceVersion"]}
        body = {**changes, "metadata": {**changes.get("metadata", {}), **fence}}
        return await self._write("patch", obj, body, subresource=subresource, query=_FIELDS, content=MERGE)

    async def delete(self, obj: Object) -> None:
        """Delete exactly this object, in the background.

        It is no error when the object does not exist. Raises :class:`Conflict` when another object has the name.
        """
        metadata = obj["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": metadata["uid"]},
        }
        try:
            await self._call("delete", "DELETE", resource_of(obj), metadata["namespace"], metadata["name"], body=body)
        except NotFound:
            return

    async def _write(
        self, verb: str, obj: Object, body: Object, *, subresource: str, query: Sequence[tuple[str, str]], content: str
    ) -> Object:
        metadata = obj["metadata"]
        name = f"{metadata['name']}/{subresource}" if subresource else metadata["name"]
        written: Object = await self._call(
            verb, "PATCH", resource_of(obj), metadata["namespace"], name, query=query, body=body, content=content
        )
        return written

    async def _call(
        self,
        verb: str,
        method: str,
        resource: Resource,
        namespace: str,
        name: str = "",
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content: str = "application/json",
    ) -> Any:
        path = resource.path(namespace, name)
        _, _, subresource = name.partition("/")
        API_CALLS.labels(verb, f"{resource.plural}/{subresource}" if subresource else resource.plural).inc()
        try:
            async with self._reads if method == "GET" else nullcontext(), asyncio.timeout(CALL_SECONDS):
                status, data = await self._send(method, path, query, body, content)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            text = f"{method} {path}: {type(error).__name__}; check that the API server can be reached"
            raise KubernetesError(text) from error
        if status >= 300:
            raise refusal(f"{method} {path}", status, data)
        try:
            return json.loads(data)
        except ValueError:
            text = f"{method} {path}: the answer is not JSON; check what is in front of the API server"
            raise KubernetesError(text) from None

    async def _send(
        self, method: str, path: str, query: Sequence[tuple[str, str]], body: Object | None, content: str
    ) -> tuple[int, bytes]:
        """HTTP status and body of the answer."""
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={"Accept": "application/json", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(*request)
        return answer.status, await answer.read()


def refusal(call: str, status: int, body: bytes) -> KubernetesError:
    """The error for an answer with an HTTP status of 300 or more. The message is the API server's, if it sent one.

    It is bounded, because each retry logs it, and a webhook or a quota may answer with any text.
    """
    kind = {404: NotFound, 409: Conflict}.get(status, KubernetesError)
    try:
        message = bounded_text(str(json.loads(body).get("message", "")))
    except (ValueError, AttributeError, TypeError):
        message = ""
    return kind(message or f"{call}: HTTP {status}", status)
