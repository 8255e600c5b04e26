"""Resource types of other projects, for samples that a real API server checks.

Most come from the project's own Go module, which is read when a test runs, so no copy is kept here. The Go registry has
no module of the Gateway API Inference Extension. :data:`INFERENCE_POOL` is therefore our own writing, from the
extension's published reference: a stand-in with the fields that our sample uses, and no proof that the real type
accepts them.
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
        """The CustomResourceDefinitions. The module is downloaded once, into the cache."""
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
    GoModule("github.com/kedacore/keda/v2", "v2.17.2", ("config/crd/bases/keda.sh_scaledobjects.yaml",)),
)

_PORT: Final = {
    "type": "object",
    "required": ["number"],
    "properties": {"number": {"type": "integer", "minimum": 1, "maximum": 65535}},
}
_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": 253}
INFERENCE_POOL: Final[dict[str, Any]] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "inferencepools.inference.networking.k8s.io",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
    },
    "spec": {
        "group": "inference.networking.k8s.io",
        "names": {"kind": "InferencePool", "plural": "inferencepools", "singular": "inferencepool"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["selector", "targetPorts", "endpointPickerRef"],
                                "properties": {
                                    "selector": {
                                        "type": "object",
                                        "required": ["matchLabels"],
                                        "properties": {
                                            "matchLabels": {
                                                "type": "object",
                                                "additionalProperties": {"type": "string", "maxLength": 63},
                                            }
                                        },
                                    },
                                    "targetPorts": {"type": "array", "minItems": 1, "maxItems": 8, "items": _PORT},
                                    "endpointPickerRef": {
                                        "type": "object",
                                        "required": ["name"],
                                        "properties": {
                                            "group": {"type": "string"},
                                            "kind": _TEXT,
                                            "name": _TEXT,
                                            "port": _PORT,
                                            "failureMode": {"type": "string", "enum": ["FailOpen", "FailClose"]},
                                        },
                                    },
                                },
                            }
                        },
                    }
                },
            }
        ],
    },
}
