"""Resource types of other projects, for samples that a real API server checks.

They come from the projects' own Go modules, which are read when a test runs, so no copy is kept here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.assets.cache import cache_root
from tests.cluster.command import run
from tests.cluster.local.build import find_go

DOWNLOAD_TIMEOUT_SECONDS: Final = 300


@dataclass(frozen=True)
class GoModule:
    """The resource types of one version of a Go module."""

    path: str
    version: str
    files: tuple[str, ...]
    """Below the module's folder."""

    def crds(self) -> Iterator[Any]:
        """The CustomResourceDefinitions of ``files``. The module is downloaded once, into the cache."""
        answer = run(
            *(find_go(), "mod", "download", "-json", f"{self.path}@{self.version}"),
            env={
                "GOTOOLCHAIN": "local",
                "GOWORK": "off",
                "GOFLAGS": "-modcacherw",
                "GOMODCACHE": str(cache_root() / "go-modules"),
            },
            cwd=Path("/"),
            timeout_seconds=DOWNLOAD_TIMEOUT_SECONDS,
            downloads=True,
        )
        folder = Path(json.loads(answer)["Dir"])
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
