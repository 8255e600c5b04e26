"""The calls of the API server that the program needs: get a path, and patch an object.

Objects are plain JSON, because a person sees them as they are (``-o json``) and unknown fields must survive.

Invariants: every call has a timeout. Every failure is a :class:`ClusterError` of one line. A merge patch carries the
resourceVersion that it was decided on, so it never overwrites what somebody else wrote since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import client

from aurora_api import API_VERSION, PLURAL
from aurora_cli.errors import ClusterError, Conflict, Forbidden, NotFound, NotInstalled
from aurora_store.errors import bounded_text

Object = dict[str, Any]
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
FIELD_MANAGER: Final = "kubectl-aurora"
"""The name under which ``metadata.managedFields`` lists our changes."""
MERGE_PATCH: Final = "application/merge-patch+json"
MAX_MESSAGE_CHARACTERS: Final = 500


class KubernetesApi(Protocol):
    """The calls. Tests replace it with a fake."""

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object: ...

    def merge_patch(self, path: str, patch: Object, *, dry_run: bool) -> Object: ...


def speculators_path(namespace: str, name: str = "") -> str:
    """The path of a speculator; without ``name`` of all, and without ``namespace`` in all namespaces."""
    place = f"namespaces/{quote(namespace, safe='')}/" if namespace else ""
    return f"/apis/{API_VERSION}/{place}{PLURAL}" + (f"/{quote(name, safe='')}" if name else "")


@dataclass(frozen=True)
class HttpKubernetesApi:
    """:class:`KubernetesApi` over the official client, which brings authentication and TLS."""

    client: client.ApiClient

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        return self._call("GET", path, query or {})

    def merge_patch(self, path: str, patch: Object, *, dry_run: bool) -> Object:
        """The patched object. With ``dry_run`` the server checks the patch, and stores nothing."""
        query = {"fieldManager": FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        return self._call("PATCH", path, query, patch, content=MERGE_PATCH)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Object | None = None,
        content: str = "application/json",
    ) -> Object:
        target = path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": content}
        request = self.client.param_serialize(
            method, target, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = self.client.call_api(*request, _request_timeout=(CONNECT_SECONDS, READ_SECONDS))
            data = response.read()
        except (urllib3.exceptions.HTTPError, client.ApiException, OSError) as error:
            raise unreachable(self.client.configuration.host, error) from error
        if not 200 <= response.status < 300:
            raise refusal(path, response.status, data)
        try:
            answer: Object = json.loads(data)
        except ValueError:
            raise ClusterError(f"{method} {path}: the answer is not JSON; check the address of the cluster") from None
        return answer


def unreachable(server: str, error: Exception) -> ClusterError:
    """The error for a call without an answer."""
    cause = getattr(error, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.ReadTimeoutError):
        return ClusterError(f"the API server {server} did not answer within {READ_SECONDS:g} s; try again")
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        why = "its name is not known"
    elif isinstance(cause, urllib3.exceptions.NewConnectionError):
        why = "the connection was refused"
    elif isinstance(cause, urllib3.exceptions.ConnectTimeoutError):
        why = f"no connection within {CONNECT_SECONDS:g} s"
    elif isinstance(cause, urllib3.exceptions.SSLError):
        why = "its certificate is not trusted by the kubeconfig"
    else:
        why = type(cause).__name__
    return ClusterError(f"the API server {server} cannot be reached: {why}; check the kubeconfig and its context")


def refusal(path: str, status: int, body: bytes) -> ClusterError:
    """The error for an answer with an HTTP status of 300 or more."""
    answer = _status_object(body)
    message = bounded_text(str(answer.get("message") or ""), MAX_MESSAGE_CHARACTERS) or f"{path}: HTTP {status}"
    if status == HTTPStatus.NOT_FOUND:
        # An unknown kind is answered with a text. The answer about a missing object names the object.
        if path.startswith(f"/apis/{API_VERSION}/") and not (answer.get("details") or {}).get("name"):
            return NotInstalled(
                "the cluster does not know the kind AuroraSpeculator: install the Aurora chart, or choose another"
                " --context"
            )
        return NotFound(message)
    if status == HTTPStatus.UNAUTHORIZED:
        return ClusterError("the API server does not accept the credentials of the kubeconfig; log in again")
    if status == HTTPStatus.FORBIDDEN:
        return Forbidden(message)
    if status == HTTPStatus.CONFLICT:
        return Conflict(message)
    return ClusterError(message)


def _status_object(body: bytes) -> Mapping[str, Any]:
    """The ``Status`` that the API server answers; empty for an answer that is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
