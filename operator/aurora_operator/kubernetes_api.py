"""The calls of the API server that the operator needs: get, list, create, server-side apply, replace and delete.

Objects are plain JSON. Server-side apply must send only the fields that we own, and typed models would send all other
fields as null. The calls block, so async code runs them in threads.

Invariants: every call has a timeout and a size limit, and is counted. Every failure is a :class:`KubernetesError`. No
delete reaches an object other than the one that was observed, because it carries that object's uid. Whoever reads the
operator's cache also reads the operator's own writes, because every write hands its answer to ``on_write``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import urllib3
from kubernetes import client
from kubernetes import config as kube_config
from prometheus_client import Counter
from pydantic_core import from_json

from aurora_api import API_VERSION, KIND, PLURAL
from aurora_operator.errors import Conflict, Expired, KubernetesError, NamespaceEnds, NotFound, TooLarge
from aurora_operator.operator_config import OPERATOR_NAME
from aurora_store.errors import bounded_text

Object = dict[str, Any]
TIMEOUT_SECONDS = (5.0, 30.0)
"""Timeouts of connecting and of reading."""
MAX_CONNECTIONS = 64
"""Connections that are kept for later calls. With fewer than threads, calls would make a new TLS connection each."""
PAGE_SIZE = 100
"""Objects per page of a list: about 1 MB, and up to twenty times as much once they are parsed."""
MAX_PAGE_BYTES = 4 << 20
"""A page that exceeds this is asked for again with fewer objects, so that large objects of others cannot fill the
memory."""
MAX_OBJECT_BYTES = 16 << 20
"""More than one object can have. etcd stores 1.5 MiB of it, and JSON needs up to 6 bytes for one of them."""
APPLY_CONTENT_TYPE = "application/apply-patch+yaml"
MERGE_CONTENT_TYPE = "application/merge-patch+json"
API_CALLS = Counter(
    "aurora_api_calls",
    "Calls of the Kubernetes API, by verb (get, list, watch, create, apply, update or delete) and resource.",
    ("verb", "resource"),
)
NAMESPACE_TERMINATING = "NamespaceTerminating"
"""The API server's reason why it creates nothing in a namespace that is being deleted."""
_VERBS = {"POST": "create", "PATCH": "apply", "PUT": "update", "DELETE": "delete"}


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
EVENT = Resource("Event", "v1", "events")
NAMESPACE = Resource("Namespace", "v1", "namespaces")
LEASE = Resource("Lease", "coordination.k8s.io/v1", "leases")

WATCHED = (
    SPECULATOR,
    DEPLOYMENT,
    JOB,
    POD,
    SERVICE,
    SERVICE_ACCOUNT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
)
"""Kinds that informers list and watch. Secrets are not among them: the operator may not list them."""
CHILDREN = (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY)
"""Kinds that are applied in every reconcile. Jobs and Secrets are created once and never changed."""
_BY_KIND = {resource.kind: resource for resource in (*CHILDREN, JOB, SECRET, POD, EVENT, LEASE, SPECULATOR)}


class PageSize:
    """How many objects to ask for in the next page of a list."""

    def __init__(self) -> None:
        self.limit = PAGE_SIZE

    @property
    def max_bytes(self) -> int:
        """The size limit of the next page. A page of one object cannot be made smaller."""
        return MAX_PAGE_BYTES if self.limit > 1 else MAX_OBJECT_BYTES

    def shrink(self) -> bool:
        """The page was too large. False when it was a page of one object."""
        shrinks = self.limit > 1
        self.limit = max(1, self.limit // 4)
        return shrinks

    def grow(self) -> None:
        """The page was small enough. Large objects are rare, so the next page may have more objects again."""
        self.limit = min(PAGE_SIZE, self.limit * 2)


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """The resource of an object's kind."""
    return _BY_KIND[obj["kind"]]


class KubernetesApi(Protocol):
    """The calls that observing and acting need. Tests replace it with a fake that injects faults."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object: ...

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Iterable[Object]: ...

    def apply(self, obj: Object, *, subresource: str = "") -> Object: ...

    def create(self, obj: Object) -> Object: ...

    def set_managed_fields(self, obj: Object, managed_fields: Sequence[Object]) -> Object: ...

    def set_finalizers(self, obj: Object, finalizers: Sequence[str]) -> Object: ...

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None: ...


class HttpKubernetesApi:
    """:class:`KubernetesApi` over the official client, which brings connection, authentication and TLS.

    Args:
        on_write: gets the object that a write returned, in the thread of the call and before the call returns.
        around_write: entered in the thread of the call just before each write, and left when the write has ended.
            Raises an error to prevent the write.
        timeout_seconds: of connecting and of reading.
    """

    def __init__(
        self,
        api: client.ApiClient,
        on_write: Callable[[Object], None] | None = None,
        around_write: Callable[[], AbstractContextManager[None]] | None = None,
        timeout_seconds: tuple[float, float] = TIMEOUT_SECONDS,
    ) -> None:
        self._api, self._on_write, self._around_write = api, on_write, around_write or nullcontext
        self._timeout_seconds = timeout_seconds
        api.user_agent = OPERATOR_NAME  # not a header of each call: the client's own header would replace it

    @classmethod
    def connect(
        cls,
        on_write: Callable[[Object], None] | None = None,
        around_write: Callable[[], AbstractContextManager[None]] | None = None,
        timeout_seconds: tuple[float, float] = TIMEOUT_SECONDS,
    ) -> HttpKubernetesApi:
        """Connect with the pod's ServiceAccount, or outside of a cluster with the current kubeconfig.

        Never through a proxy, as lists and watches (:mod:`aurora_operator.watch.api_stream`). With ``HTTPS_PROXY``,
        which is meant for the S3 store, a pod would otherwise have a full cache and never get the Lease.
        """
        try:
            kube_config.load_incluster_config()
        except kube_config.ConfigException:
            kube_config.load_kube_config()
        configuration = client.Configuration.get_default_copy()
        configuration.retries = 0  # a retry deep inside would happen after ``around_write`` has allowed the write
        configuration.connection_pool_maxsize = MAX_CONNECTIONS
        configuration.proxy = None
        return cls(client.ApiClient(configuration), on_write, around_write, timeout_seconds)

    @property
    def configuration(self) -> client.Configuration:
        """The API server's address, and how to authenticate."""
        return self._api.configuration

    def _write(self, method: str, path: str, body: Object, *, content: str = "application/json") -> Object:
        """A call that returns the written object."""
        written: Object = self._call(method, path, body, content=content)
        if self._on_write is not None:
            self._on_write(written)
        return written

    def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content: str = "application/json",
        max_bytes: int = MAX_OBJECT_BYTES,
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content}
        request = self._api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        _count(method, path)
        with nullcontext() if method == "GET" else self._around_write():
            return self._send(f"{method} {path.split('?')[0]}", request, max_bytes)

    def _send(self, call: str, request: Sequence[Any], max_bytes: int) -> Any:
        """Send a request and wait for its answer of at most ``max_bytes``. Errors name the ``call``."""
        try:
            response = self._api.call_api(*request, _request_timeout=self._timeout_seconds)
            data = _read(call, response.response, max_bytes)
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            raise KubernetesError(
                f"{call}: {type(error).__name__}; check that the API server can be reached"
            ) from error
        if 200 <= response.status < 300:
            try:
                return from_json(data)
            except ValueError:
                raise KubernetesError(
                    f"{call}: the answer is not JSON; check what is in front of the API server"
                ) from None
        raise refusal(call, response.status, data)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found: Object = self._call("GET", resource.path(namespace, name))
        return found

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Iterator[Object]:
        """The objects, page by page. Iterating blocks and raises :class:`KubernetesError`.

        Labels do not prove whose objects these are. Keep only what is needed, because others may have many large ones.
        """
        size, token = PageSize(), ""
        while True:
            query = {"labelSelector": labels, "limit": str(size.limit), "continue": token}
            path = f"{resource.path(namespace)}?{urlencode({key: value for key, value in query.items() if value})}"
            try:
                page = self._call("GET", path, max_bytes=size.max_bytes)
            except TooLarge:
                if not size.shrink():
                    raise
                continue
            for item in page["items"]:
                yield {"apiVersion": resource.api_version, "kind": resource.kind, **item}
            size.grow()
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        """Server-side apply. Fields that others set and that ``obj`` does not contain are left alone.

        Raises :class:`Conflict` when ``obj`` carries a uid and no object exists (none is created), or a
        resourceVersion that is no longer the object's. A uid that is not the stored object's is refused as a conflict,
        or for some kinds as an invalid change (HTTP 422).
        """
        query = urlencode({"fieldManager": OPERATOR_NAME, "force": "true"})
        suffix = f"/{subresource}" if subresource else ""
        return self._write("PATCH", f"{_path_of(obj)}{suffix}?{query}", obj, content=APPLY_CONTENT_TYPE)

    def create(self, obj: Object) -> Object:
        """Raises :class:`Conflict` when an object of that name exists."""
        path = resource_of(obj).path(obj["metadata"]["namespace"])
        return self._write("POST", f"{path}?{urlencode({'fieldManager': OPERATOR_NAME})}", obj)

    def replace(self, obj: Object) -> Object:
        """Raises :class:`Conflict` when the stored object is another one, or has another resourceVersion."""
        return self._write("PUT", f"{_path_of(obj)}?{urlencode({'fieldManager': OPERATOR_NAME})}", obj)

    def set_managed_fields(self, obj: Object, managed_fields: Sequence[Object]) -> Object:
        """Replace ``metadata.managedFields`` and nothing else.

        Raises :class:`Conflict` when the object's resourceVersion is no longer that of ``obj``.
        """
        return self._merge_metadata(obj, {"managedFields": managed_fields})

    def set_finalizers(self, obj: Object, finalizers: Sequence[str]) -> Object:
        """Replace ``metadata.finalizers`` and nothing else.

        Raises :class:`Conflict` when the object's resourceVersion is no longer that of ``obj``.
        """
        return self._merge_metadata(obj, {"finalizers": finalizers})

    def _merge_metadata(self, obj: Object, changed: Object) -> Object:
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"], **changed}
        path = f"{_path_of(obj)}?{urlencode({'fieldManager': OPERATOR_NAME})}"
        return self._write("PATCH", path, {"metadata": metadata}, content=MERGE_CONTENT_TYPE)

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete the object ``uid`` in the background.

        It is no error when the object does not exist. Raises :class:`Conflict` when another object has the name.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        }
        try:
            self._call("DELETE", resource.path(namespace, name), options)
        except NotFound:
            return


def _read(call: str, response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    """The body. Raises :class:`TooLarge`, and ends the connection, when it has more than ``max_bytes``."""
    data = response.read(max_bytes + 1)
    if len(data) > max_bytes:
        response.close()
        raise TooLarge(f"{call}: the answer exceeds {max_bytes} bytes")
    return data


def refusal(call: str, status: int, body: bytes) -> KubernetesError:
    """The error for an answer with an HTTP status of 300 or more. The message is the API server's, if it sent one.

    It is bounded, because each retry logs it, and a webhook or a quota may answer with any text.
    """
    kind = {404: NotFound, 409: Conflict, 410: Expired}.get(status, KubernetesError)
    try:
        answer = json.loads(body)
        message = bounded_text(str(answer.get("message", "")))
        causes = (answer.get("details") or {}).get("causes") or ()
        if any(cause.get("reason") == NAMESPACE_TERMINATING for cause in causes):
            kind = NamespaceEnds
    except (ValueError, AttributeError, TypeError):
        message = ""
    return kind(message or f"{call}: HTTP {status}", status)


def _count(method: str, path: str) -> None:
    """Count a call of an object's path, ``…/namespaces/<namespace>/<plural>[/<name>[/<subresource>]]``."""
    plural, *rest = path.split("?")[0].partition("/namespaces/")[2].split("/")[1:]
    verb = _VERBS.get(method) or ("get" if rest else "list")
    API_CALLS.labels(verb, "/".join([plural, *rest[1:]])).inc()


def _path_of(obj: Object) -> str:
    return resource_of(obj).path(obj["metadata"]["namespace"], obj["metadata"]["name"])
