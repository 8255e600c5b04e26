"""What a test needs of a cluster, whichever kind it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Access:
    """How to reach one running cluster, and the few operations that differ between kinds of clusters."""

    name: str
    kubeconfig: Path
    kubectl: Path
    helm: Path
    host_address: str
    """The address at which pods reach servers that listen on this machine."""
    load_image: Callable[[Path], None]
    down: Callable[[], None]
    created: bool
    """Whether this call started the cluster. Whoever starts a cluster ends it, and nobody else does."""
    context: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
