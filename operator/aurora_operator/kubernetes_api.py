"""The calls of the API server that the operator needs: get, list, server-side apply, create and delete.

Objects are plain JSON. Server-side apply must send only the fields that we own, and typed models would send all other
fields as null. The calls block, so async code runs them in threads.

Invariants: every call has a timeout. Every failure is a :class:`KubernetesError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import urllib3
from kubernetes import client
from kubernetes import config as kube_config

from aurora_api import API_VERSION, KIND, PLURAL
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.operator_config import OPERATOR_NAME

Object = dict[str, Any]
TIMEOUT_SECONDS = (5.0, 30.0)
"""Timeouts of connecting and of reading."""
APPLY_CONTENT_TYPE = "application/apply-patch+yaml"


@dataclass(frozen=True)
class Resource:
    """A kind of object and its place in the API."""

    kind: str
    api_version: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        prefix = "/api" if "/" not in self.api_version else "/apis"
        return f"{prefix}/{self.api_version}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


SPECULATOR = Resource(KIND, API_VERSION, PLURAL)
DEPLOYMENT = Resource("Deployment", "apps/v1", "deployments")
STATEFUL_SET = Resource("StatefulSet", "apps/v1", "statefulsets")
JOB = Resource("Job", "batch/v1", "jobs")
POD = Resource("Pod", "v1", "pods")
SERVICE = Resource("Service", "v1", "services")
SECRET = Resource("Secret", "v1", "secrets")
SERVICE_ACCOUNT = Resource("ServiceAccount", "v1", "serviceaccounts")
DISRUPTION_BUDGET = Resource("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
NETWORK_POLICY = Resource("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
EVENT = Resource("Event", "v1", "events")

CHILDREN = (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY)
"""Kinds that are applied in every reconcile. Jobs and Secrets are created once and never changed."""
_BY_KIND = {resource.kind: resource for resource in (*CHILDREN, JOB, SECRET, POD, EVENT, SPECULATOR)}


def resource_of(obj: Mapping[str, Any]) -> Resource:
    """The resource of an object's kind."""
    return _BY_KIND[obj["kind"]]


class KubernetesApi(Protocol):
    """The calls that observing and acting need. Tests replace it with a fake that injects faults."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object: ...

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]: ...

    def apply(self, obj: Object, *, subresource: str = "") -> Object: ...

    def create(self, obj: Object) -> Object: ...

    def delete(self, resource: Resource, namespace: str, name: str, uid: str = "") -> None: ...


class HttpKubernetesApi:
    """:class:`KubernetesApi` over the official client, which brings connection, authentication and TLS."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    def connect(cls) -> HttpKubernetesApi:
        """Connect with the pod's ServiceAccount, or outside of a cluster with the current kubeconfig."""
        try:
            kube_config.load_incluster_config()
        except kube_config.ConfigException:
            kube_config.load_kube_config()
        return cls(client.ApiClient())

    def _call(self, method: str, path: str, body: Object | None = None, *, content: str = "application/json") -> Any:
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": OPERATOR_NAME}
        request = self._api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        call = f"{method} {path.split('?')[0]}"
        try:
            response = self._api.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            data = response.read()
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            raise KubernetesError(
                f"{call}: {type(error).__name__}; check that the API server can be reached"
            ) from error
        if 200 <= response.status < 300:
            return json.loads(data)
        try:
            message = str(json.loads(data).get("message", ""))
        except (ValueError, AttributeError):
            message = ""
        kind = {404: NotFound, 409: Conflict}.get(response.status, KubernetesError)
        raise kind(message or f"{call}: HTTP {response.status}", response.status)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found: Object = self._call("GET", resource.path(namespace, name))
        return found

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        path = resource.path(namespace) + (f"?{urlencode({'labelSelector': labels})}" if labels else "")
        return [
            {"apiVersion": resource.api_version, "kind": resource.kind, **item}
            for item in self._call("GET", path)["items"]
        ]

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        """Server-side apply. Fields that others set and that ``obj`` does not contain are left alone.

        Raises :class:`Conflict` when ``obj`` carries a resourceVersion that is no longer the object's.
        """
        path = resource_of(obj).path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        query = urlencode({"fieldManager": OPERATOR_NAME, "force": "true"})
        suffix = f"/{subresource}" if subresource else ""
        applied: Object = self._call("PATCH", f"{path}{suffix}?{query}", obj, content=APPLY_CONTENT_TYPE)
        return applied

    def create(self, obj: Object) -> Object:
        """Raises :class:`Conflict` when an object of that name exists."""
        path = resource_of(obj).path(obj["metadata"]["namespace"])
        created: Object = self._call("POST", f"{path}?{urlencode({'fieldManager': OPERATOR_NAME})}", obj)
        return created

    def delete(self, resource: Resource, namespace: str, name: str, uid: str = "") -> None:
        """Delete in the background. Deleting an object that does not exist is no error.

        With ``uid``, only this object is deleted. Raises :class:`Conflict` when another object has the name now.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._call("DELETE", resource.path(namespace, name), options)
        except NotFound:
            return
