"""The chart, packaged and pushed to a real OCI registry on this machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster.command import run
from tests.cluster.local.build import binaries
from tests.rig.chart.oci_registry import oci_registry
from tests.rig.chart.rendered_chart import CHART, OPERATOR

PLAIN_HTTP = "--plain-http"
"""A registry on the loopback has no certificate."""
VERSION = str(yaml.safe_load((CHART / "Chart.yaml").read_text())["version"])


@dataclass(frozen=True)
class PushedChart:
    """The chart in a registry."""

    reference: str
    digest: str
    package: Path
    homes: dict[str, str]

    def helm(self, *arguments: str | Path) -> str:
        """Run Helm with empty caches of its own. A failure raises ``CommandError``."""
        return run(binaries() / "helm", *arguments, env=self.homes)


@contextlib.contextmanager
def pushed_chart(folder: Path) -> Iterator[PushedChart]:
    """The chart in a registry that runs until the context ends. Helm keeps its files in ``folder``."""
    homes = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    helm = binaries() / "helm"
    run(helm, "package", CHART, "--destination", folder, env=homes)
    package = folder / f"{OPERATOR}-{VERSION}.tgz"
    with oci_registry() as registry:
        reference = f"oci://{registry}/charts"
        pushed = run(helm, "push", package, reference, PLAIN_HTTP, env=homes)
        found = re.search(r"sha256:[0-9a-f]{64}", pushed)
        yield PushedChart(f"{reference}/{OPERATOR}", found[0] if found else pushed, package, homes)
