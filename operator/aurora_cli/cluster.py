"""The cluster as the commands see it: speculators, and what stands around one.

The kubeconfig and the calls are those of the official client. Objects stay plain JSON, because an operator of another
version may have written fields that this version does not know.

Invariants: every call has a timeout. Every failure is a :class:`ClusterError` of one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import urllib3
from kubernetes import client
from kubernetes.config import ConfigException, kube_config
from yaml import YAMLError

from aurora_api import GROUP, PLURAL, VERSION
from aurora_cli.errors import ClusterError, Forbidden, NotFound
from aurora_cli.speculator import Speculator
from aurora_store.errors import bounded_text

Object = dict[str, Any]
TIMEOUT_SECONDS: Final = (5.0, 30.0)
"""To connect, and to wait for an answer."""
FIELD_MANAGER: Final = "kubectl-aurora"
"""The name under which ``metadata.managedFields`` lists our changes."""
LABELS: Final = "app.kubernetes.io/name=aurora,app.kubernetes.io/instance="
"""Labels of a speculator's objects, without the speculator's name."""
MAX_MESSAGE_CHARACTERS: Final = 500
_UNUSABLE: Final = (ConfigException, YAMLError, OSError, TypeError, AttributeError, KeyError)
"""Errors of the client for a file that is no kubeconfig. The last three mean YAML of another shape."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster, with the user's own rights."""

    api: client.ApiClient
    namespace: str
    kubectl_flags: Sequence[str] = ()
    """The flags with which kubectl reaches the same cluster."""

    def speculator(self, name: str) -> Speculator:
        """Raises :class:`NotFound`."""
        try:
            return Speculator.of(self._call(self._objects.get_namespaced_custom_object, self.namespace, PLURAL, name))
        except NotFound:
            raise NotFound(f"no AuroraSpeculator {name} in the namespace {self.namespace}") from None

    def speculators(self, *, everywhere: bool = False) -> Sequence[Speculator]:
        """The speculators of the namespace, or of all namespaces, by name."""
        if everywhere:
            answer = self._call(self._objects.list_cluster_custom_object, PLURAL)
        else:
            answer = self._call(self._objects.list_namespaced_custom_object, self.namespace, PLURAL)
        found = [Speculator.of_any(item) for item in answer.get("items", [])]
        return sorted(found, key=lambda one: (one.namespace, one.name))

    def patch(self, name: str, patch: Object, *, dry_run: bool) -> None:
        """Merge ``patch`` (RFC 7386) into a speculator. With ``dry_run`` the server checks it, and stores nothing."""
        dry = {"dry_run": "All"} if dry_run else {}
        with _one_line_errors(self.api):
            self._objects.patch_namespaced_custom_object(
                *(GROUP, VERSION, self.namespace, PLURAL, name, patch),
                field_manager=FIELD_MANAGER,
                _request_timeout=TIMEOUT_SECONDS,
                **dry,
            )

    def secret(self, name: str) -> Mapping[str, str]:
        """The values of a Secret, in base64."""
        with _one_line_errors(self.api):
            found = self._core.read_namespaced_secret(name, self.namespace, _request_timeout=TIMEOUT_SECONDS)
        return found.data or {}

    def ready_pod(self, name: str, component: str) -> str | None:
        """The name of a ready pod of a speculator's component."""
        wanted = {"label_selector": f"{LABELS}{name},app.kubernetes.io/component={component}"}
        with _one_line_errors(self.api):
            pods = self._core.list_namespaced_pod(self.namespace, **wanted, _request_timeout=TIMEOUT_SECONDS).items
        ready = (pod.metadata for pod in pods if any(_is_ready(one) for one in pod.status.conditions or ()))
        return next((pod.name for pod in ready if pod.deletion_timestamp is None), None)

    def lease(self, namespace: str, name: str) -> Mapping[str, Any]:
        """The ``spec`` of a Lease; empty where there is none. Raises :class:`ClusterError`."""
        group = ("coordination.k8s.io", "v1")
        try:
            found = self._call(self._objects.get_namespaced_custom_object, namespace, "leases", name, group=group)
        except NotFound:
            return {}
        return found.get("spec") or {}

    @property
    def _core(self) -> Any:
        return client.CoreV1Api(self.api)

    @property
    def _objects(self) -> Any:
        return client.CustomObjectsApi(self.api)

    def _call(self, method: Callable[..., Any], *place: str, group: tuple[str, str] = (GROUP, VERSION)) -> Object:
        with _one_line_errors(self.api):
            answer: Object = method(*group, *place, _request_timeout=TIMEOUT_SECONDS)
        return answer


def connect(*, namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None) -> Cluster:
    """Read the kubeconfig, which decides what is None. No call is made yet.

    Raises :class:`ClusterError` when there is no usable kubeconfig.
    """
    files = kubeconfig or os.environ.get("KUBECONFIG") or kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    configuration = client.Configuration()
    try:
        context, usual_namespace = _context_of(files, context)
        kube_config.load_kube_config(files, context, configuration, persist_config=False)
    except _UNUSABLE as error:
        text = bounded_text(" ".join(str(error).split()).rstrip("."), 300)
        raise ClusterError(f"the kubeconfig {files} cannot be used: {text}; name another with --kubeconfig") from error
    configuration.retries = 0
    api = client.ApiClient(configuration)
    api.user_agent = FIELD_MANAGER
    named = {"context": context, "kubeconfig": kubeconfig}
    flags = tuple(f"--{flag}={value}" for flag, value in named.items() if value is not None)
    return Cluster(api, namespace or usual_namespace or "default", flags)


def _context_of(files: str, named: str | None) -> tuple[str, str]:
    """Name and namespace of the context ``named``, or of the current one. The first file that has a value wins.

    The client itself takes ``current-context`` of the last file, which is another cluster than kubectl's.
    """
    kubeconfigs = kube_config.KubeConfigMerger(files).config_files.values()
    name = named or next(filter(None, (one.get("current-context") for one in kubeconfigs)), None)
    if not name:
        raise ConfigException("it is missing or has no current-context; choose one with --context")
    contexts = (context for one in kubeconfigs for context in one.get("contexts") or ())
    chosen = next((context for context in contexts if context["name"] == name), None)
    return name, str(chosen["context"].get("namespace") or "") if chosen else ""


@contextmanager
def _one_line_errors(api: client.ApiClient) -> Iterator[None]:
    """Raises a :class:`ClusterError` for every error of the client."""
    try:
        yield
    except client.ApiException as error:
        if not error.status:
            raise _unreachable(api.configuration.host, error) from error
        raise refusal(error.status, error.body) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _unreachable(api.configuration.host, error) from error


def _unreachable(server: str, error: Exception) -> ClusterError:
    """The error for a call without an answer."""
    why = type(getattr(error, "reason", None) or error).__name__
    return ClusterError(f"the API server {server} does not answer ({why}); check the kubeconfig and its context")


def refusal(status: int, body: str | bytes | None) -> ClusterError:
    """The error for an answer with an HTTP status of 300 or more."""
    answer = _status_object(body)
    message = bounded_text(str(answer.get("message") or ""), MAX_MESSAGE_CHARACTERS) or f"HTTP {status}"
    if status == HTTPStatus.NOT_FOUND:
        if answer:
            return NotFound(message)
        # A kind that the server does not know is answered with a text.
        return ClusterError(
            "the cluster does not know the kind AuroraSpeculator: install the Aurora chart, or choose another --context"
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return ClusterError("the API server does not accept the credentials of the kubeconfig; log in again")
    return Forbidden(message) if status == HTTPStatus.FORBIDDEN else ClusterError(message)


def _status_object(body: str | bytes | None) -> Mapping[str, Any]:
    """The ``Status`` that the API server answers; empty for an answer that is none."""
    try:
        found = json.loads(body or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_ready(condition: Any) -> bool:
    return bool(condition.type == "Ready" and condition.status == "True")
