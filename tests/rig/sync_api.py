"""A blocking client of the API server, for rigs and waits. Polling with kubectl would take a core from the cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from kubernetes import client

from aurora_operator.errors import NotFound
from aurora_operator.kubernetes_api import APPLY, MERGE, Object, Resource, refusal, resource_of
from aurora_operator.operator_config import OPERATOR_NAME

EVENT = Resource("Event", "v1", "events")
LEASE = Resource("Lease", "coordination.k8s.io/v1", "leases")
TIMEOUT_SECONDS = (5.0, 30.0)


class SyncApi:
    """The calls of :class:`~aurora_operator.kubernetes_api.KubernetesApi`, and the same errors."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        found: Object = self.call("GET", resource.path(namespace, name))
        return found

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        path = resource.path(namespace) + (f"?{urlencode({'labelSelector': labels})}" if labels else "")
        items = self.call("GET", path)["items"]
        return [{"apiVersion": resource.api_version, "kind": resource.kind, **item} for item in items]

    def create(self, obj: Object) -> Object:
        created: Object = self.call("POST", resource_of(obj).path(obj["metadata"]["namespace"]), obj)
        return created

    def apply(self, obj: Object, *, subresource: str = "", manager: str = OPERATOR_NAME) -> Object:
        query = urlencode({"fieldManager": manager, "force": "true"})
        applied: Object = self.call("PATCH", f"{_path(obj, subresource)}?{query}", obj, content=APPLY)
        return applied

    def patch(self, obj: Object, changes: Object, *, subresource: str = "") -> Object:
        patched: Object = self.call("PATCH", _path(obj, subresource), changes, content=MERGE)
        return patched

    def dry_run(self, obj: Object, namespace: str) -> Object:
        """The object as the API server would store it, as ``kubectl apply --server-side --dry-run=server`` asks."""
        path = resource_of(obj).path(namespace, obj["metadata"]["name"])
        query = urlencode({"fieldManager": "kubectl", "dryRun": "All", "fieldValidation": "Strict"})
        stored: Object = self.call("PATCH", f"{path}?{query}", obj, content=APPLY)
        return stored

    def delete(self, obj: Object) -> None:
        try:
            self.call("DELETE", _path(obj))
        except NotFound:
            return

    def call(self, method: str, path: str, body: Object | None = None, *, content: str = "application/json") -> Any:
        """The parsed answer. Raises :class:`KubernetesError`."""
        headers = {"Accept": "application/json", "Content-Type": content}
        request = self._api.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer = self._api.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
        data = answer.response.read()
        if answer.status >= 300:
            raise refusal(f"{method} {path}", answer.status, data)
        return json.loads(data)


def _path(obj: Object, subresource: str = "") -> str:
    path = resource_of(obj).path(obj["metadata"]["namespace"], obj["metadata"]["name"])
    return f"{path}/{subresource}" if subresource else path
