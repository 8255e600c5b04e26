"""Connects to the cluster that the user's kubeconfig names, as kubectl does.

Order: ``--kubeconfig``, else ``KUBECONFIG``, else ``~/.kube/config``. Where no such file is, a pod's ServiceAccount.
The context is ``--context``, else the ``current-context`` of the first file that has one. The namespace is
``--namespace``, else that of the context, else ``default``.

Invariant: the API server and `kubectl exec` are those of the same cluster, because kubectl gets the context by name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kubernetes import client
from kubernetes import config as kube_config
from kubernetes.config.kube_config import KubeConfigMerger
from urllib3.exceptions import LocationParseError
from yaml import YAMLError

from aurora_cli.cluster.kubernetes_api import FIELD_MANAGER, HttpKubernetesApi, KubernetesApi
from aurora_cli.errors import ClusterError
from aurora_store.errors import bounded_text

POD_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_UNUSABLE: Final = (
    kube_config.ConfigException,
    YAMLError,
    LocationParseError,
    OSError,
    TypeError,
    AttributeError,
    KeyError,
)
"""Errors of the client for a file that is no kubeconfig. The last three mean YAML of another shape."""


@dataclass(frozen=True)
class Access:
    """The flags that name the cluster. None: the kubeconfig decides."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def kubectl_flags(self) -> tuple[str, ...]:
        """The flags with which kubectl reaches the same cluster."""
        named = {"context": self.context, "kubeconfig": self.kubeconfig}
        return tuple(f"--{flag}={value}" for flag, value in named.items() if value is not None)


@dataclass(frozen=True)
class Connection:
    """The API server, and the namespace that the user means."""

    api: KubernetesApi
    namespace: str
    kubectl_flags: Sequence[str] = ()
    """The flags with which kubectl reaches the same cluster."""


def connect(access: Access) -> Connection:
    """Read the kubeconfig. No call is made yet. Raises :class:`ClusterError` when there is no usable one."""
    configuration = client.Configuration()
    file = access.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        if access.kubeconfig is None and access.context is None and not _exists(file) and POD_NAMESPACE_FILE.exists():
            kube_config.load_incluster_config(client_configuration=configuration)
            namespace = POD_NAMESPACE_FILE.read_text().strip()
        else:
            context, namespace = _context_of(file, access.context)
            access = replace(access, context=context)
            kube_config.load_kube_config(file, context, configuration, persist_config=False)
    except _UNUSABLE as error:
        text = bounded_text(" ".join(str(error).split()).rstrip("."), 300)
        raise ClusterError(f"the kubeconfig {file} cannot be used: {text}; name another with --kubeconfig") from error
    configuration.retries = 0
    api_client = client.ApiClient(configuration)
    api_client.user_agent = FIELD_MANAGER
    namespace = access.namespace or namespace or "default"
    return Connection(HttpKubernetesApi(api_client), namespace, access.kubectl_flags())


def _exists(files: str) -> bool:
    """Whether one of the files of a ``KUBECONFIG`` exists."""
    return any(Path(file).expanduser().exists() for file in files.split(os.pathsep) if file)


def _context_of(files: str, named: str | None) -> tuple[str | None, str]:
    """Name and namespace of the context ``named``, or of the current one. The first file that has a value wins.

    The client itself takes ``current-context`` of the last file, which is another cluster than kubectl's.
    """
    kubeconfigs = KubeConfigMerger(files).config_files.values()
    current = (one.get("current-context") for one in kubeconfigs)
    name = named or next(filter(None, current), None)
    if kubeconfigs and not name:
        raise kube_config.ConfigException("it has no current-context; choose one with --context")
    contexts = (context for one in kubeconfigs for context in one.get("contexts") or ())
    chosen = next((context for context in contexts if context["name"] == name), None)
    return name, str(chosen["context"].get("namespace") or "") if chosen else ""
