"""A Kubernetes cluster for tests and the demo, of whichever kind CLUSTER says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster import foreign
from tests.cluster.access import Access
from tests.cluster.command import run
from tests.cluster.layout import default_name
from tests.cluster.local import LocalCluster


class Cluster:
    """One running cluster. As a context manager it ends the cluster if this object started it, and only then."""

    def __init__(self, access: Access) -> None:
        self.access = access

    @classmethod
    def up(cls, name: str | None = None, kind: str | None = None) -> Cluster:
        """Start the cluster `name`, or find it running. `kind` is local, kind or existing.

        The defaults are CLUSTER_NAME's and CLUSTER's, so that two sessions on one machine can have one each.
        """
        kinds: Mapping[str, Callable[[str], Access]] = {
            "local": lambda name: LocalCluster(name).up(),
            "kind": foreign.kind,
            "existing": foreign.existing,
        }
        chosen = kind or os.environ.get("CLUSTER") or "local"
        if chosen not in kinds:
            raise ValueError(f"CLUSTER is one of {', '.join(kinds)}, not {chosen!r}")
        return cls(kinds[chosen](name or default_name()))

    @property
    def name(self) -> str:
        return self.access.name

    @property
    def kubeconfig(self) -> Path:
        return self.access.kubeconfig

    @property
    def host_address(self) -> str:
        """The address at which pods reach servers that listen on this machine."""
        return self.access.host_address

    @property
    def environment(self) -> dict[str, str]:
        """For programs that a test starts itself, such as the operator on the host."""
        return {**self.access.environment, "KUBECONFIG": str(self.kubeconfig)}

    def kubectl(self, *arguments: str | Path, input: str | None = None, timeout: float = 120) -> str:  # noqa: A002
        """Run kubectl and return its stdout; CommandError, with stderr in it, when it fails."""
        return self._run(self.access.kubectl, ("--context", self.access.context), arguments, input, timeout)

    def helm(self, *arguments: str | Path, input: str | None = None, timeout: float = 300) -> str:  # noqa: A002
        """Run helm and return its stdout; CommandError, with stderr in it, when it fails."""
        return self._run(self.access.helm, ("--kube-context", self.access.context), arguments, input, timeout)

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any], namespace: str | None = None) -> str:
        """Server-side apply of objects given as Python values."""
        where = ("--namespace", namespace) if namespace else ()
        everything = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self.kubectl("apply", "--server-side", "--force-conflicts", *where, "-f", "-", input=everything)

    def load_image(self, tar: Path) -> None:
        """Make the images of a docker archive available to pods (imagePullPolicy IfNotPresent or Never)."""
        self.access.load_image(tar)

    def down(self) -> None:
        self.access.down()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.access.created:
            self.down()

    def _run(
        self,
        program: Path,
        context: tuple[str, str | None],
        arguments: tuple[str | Path, ...],
        given: str | None,
        timeout: float,
    ) -> str:
        chosen = [context[0], context[1]] if context[1] else []
        return run(program, *chosen, *arguments, env=self.environment, input=given, timeout=timeout)
