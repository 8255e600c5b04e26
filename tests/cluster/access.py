"""How to reach one running cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Tools:
    """The programs kubectl and helm, and the settings with which they reach one cluster."""

    kubectl: Path
    helm: Path
    kubeconfig: Path
    context: str | None = None
    """The kubeconfig context to name on every call. None: the kubeconfig holds only this cluster."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """More environment variables, such as cache directories of this cluster's own."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables for kubectl, helm and any other client of the cluster."""
        return {**self.variables, "KUBECONFIG": str(self.kubeconfig)}


@dataclass(frozen=True)
class Access:
    """How to reach one running cluster, and its operations."""

    name: str
    tools: Tools
    host_address: str
    """The address at which pods reach servers that listen on this machine. Empty when it is unknown."""
    load_image: Callable[[Path], None]
    down: Callable[[], None]
    created: bool
    """Whether this call started the cluster. Only the caller that started a cluster stops it."""
