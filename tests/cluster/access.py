"""The interface that every kind of cluster offers to `Cluster`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Access:
    """How to reach one running cluster, and the operations that differ between kinds of clusters."""

    name: str
    kubeconfig: Path
    kubectl: Path
    helm: Path
    host_address: str
    """The address at which pods reach servers that listen on this machine. Empty when it is unknown."""
    load_image: Callable[[Path], None]
    down: Callable[[], None]
    created: bool
    """Whether this call started the cluster. Only the caller that started a cluster stops it."""
    context: str | None = None
    """The kubeconfig context to name on every call. None: the kubeconfig holds only this cluster."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that kubectl and helm need for this cluster, such as cache directories of its own."""
