"""The kustomize base, rendered from the chart: ``python -m tests.generated.kustomize_base``. Needs the built Helm.

The base is what the chart gives with its defaults. Its images lie in a registry that cannot exist (RFC 2606), so a
base without an overlay pulls nobody else's image. Everything else that values can change is a patch.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import yaml

from tests.generated.generated_file import GeneratedFile
from tests.rig.chart.rendered_chart import render

FILE: Final = "kustomize/base/operator.yaml"
IMAGES: Final = {part: f"registry.invalid/aurora-{part}" for part in ("operator", "agent", "runtime")}
"""The chart's image -> its name in the base. No other value of the environment may equal a name."""
_HEADER: Final = (
    "# Generated from the chart by `python -m tests.generated.kustomize_base`: edit the chart, not this file.\n"
)
_OF_HELM: Final = ("app.kubernetes.io/managed-by", "helm.sh/chart")


def render_base() -> str:
    """The operator's objects as YAML, without the CRD and without what only Helm needs."""
    images = ",".join(f"images.{part}.repository={name}" for part, name in IMAGES.items())
    objects = [obj for obj in render(f"--set={images}") if "helm.sh/hook" not in obj["metadata"].get("annotations", {})]
    for obj in objects:
        _without_helm_labels(obj)
    return _HEADER + yaml.safe_dump_all(objects, sort_keys=False, width=120)


def _without_helm_labels(node: Any) -> None:
    if isinstance(node, dict):
        labels = node.get("labels")
        if isinstance(labels, dict):
            node["labels"] = {key: value for key, value in labels.items() if key not in _OF_HELM}
        for value in node.values():
            _without_helm_labels(value)
    elif isinstance(node, list):
        for value in node:
            _without_helm_labels(value)


BASE: Final = GeneratedFile(FILE, render_base)


if __name__ == "__main__":
    BASE.write()
    sys.exit(0)
