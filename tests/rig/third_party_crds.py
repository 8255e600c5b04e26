"""Resource types of other projects, for samples that a real API server checks.

They come from the projects' own Go modules, which are read when a test runs, so no copy is kept here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.rig.go_tools import module_sources


@dataclass(frozen=True)
class GoModule:
    """The resource types of one version of a Go module."""

    path: str
    version: str
    files: tuple[str, ...]
    """Below the module's folder."""

    def crds(self) -> Iterator[Any]:
        """The CustomResourceDefinitions of ``files``."""
        folder = module_sources(self.path, self.version)
        for name in self.files:
            yield from (obj for obj in yaml.safe_load_all((folder / name).read_text()) if obj)


_KUEUE = "config/components/crd/bases/kueue.x-k8s.io_{}.yaml"
MODULES: Final = (
    GoModule(
        "sigs.k8s.io/kueue",
        "v0.17.0",
        tuple(
            _KUEUE.format(kind)
            for kind in ("clusterqueues", "localqueues", "resourceflavors", "workloadpriorityclasses")
        ),
    ),
    GoModule("sigs.k8s.io/gateway-api", "v1.4.0", ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",)),
    GoModule(
        "sigs.k8s.io/gateway-api-inference-extension",
        "v1.3.1",
        ("config/crd/bases/inference.networking.k8s.io_inferencepools.yaml",),
    ),
    GoModule(
        "github.com/envoyproxy/gateway",
        "v1.7.0",
        ("charts/gateway-helm/crds/generated/gateway.envoyproxy.io_securitypolicies.yaml",),
    ),
    GoModule("github.com/kedacore/keda/v2", "v2.17.2", ("config/crd/bases/keda.sh_scaledobjects.yaml",)),
)
