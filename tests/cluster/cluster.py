"""One interface to the local Kubernetes cluster for tests and the demo."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.cluster.command import run
from tests.cluster.local.build import binaries
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.local.layout import default_name


class Cluster:
    """One running cluster.

    As a context manager, the object stops the cluster at the end if, and only if, the object started the cluster.
    """

    def __init__(self, local: LocalCluster, created: bool) -> None:
        """``created``: whether this process started the cluster. Only who started a cluster stops it."""
        self._local = local
        self.created = created

    @classmethod
    def up(cls, name: str | None = None) -> Cluster:
        """Start the cluster `name`, or reuse the cluster of that name that is running.

        Args:
            name: Default: the variable CLUSTER_NAME. Two sessions on one machine can use a cluster each.
        """
        local = LocalCluster(name or default_name())
        return cls(local, created=local.up())

    @property
    def name(self) -> str:
        return self._local.layout.name

    @property
    def kubeconfig(self) -> Path:
        return self._local.layout.kubeconfig

    @property
    def host_address(self) -> str:
        """The address at which pods reach servers that listen on this machine."""
        return self._local.layout.host_address

    @property
    def environment(self) -> dict[str, str]:
        """Variables for programs that a test starts itself, such as the operator on the host."""
        return self._local.client_environment()

    @functools.cached_property
    def programs(self) -> Path:
        """The folder of kubectl and helm."""
        return binaries()

    def kubectl(self, *arguments: str | Path, input: str | None = None, timeout_seconds: float = 120) -> str:  # noqa: A002
        """Run kubectl and return its stdout. A failure raises CommandError, which holds kubectl's stderr."""
        program = self.programs / "kubectl"
        return run(program, *arguments, env=self.environment, input=input, timeout_seconds=timeout_seconds)

    def helm(self, *arguments: str | Path, input: str | None = None, timeout_seconds: float = 300) -> str:  # noqa: A002
        """Run helm and return its stdout. A failure raises CommandError, which holds helm's stderr."""
        program = self.programs / "helm"
        return run(program, *arguments, env=self.environment, input=input, timeout_seconds=timeout_seconds)

    def get(self, *arguments: str) -> Any:
        """The parsed output of `kubectl get ... -o json`."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any], namespace: str | None = None) -> str:
        """Server-side apply of objects that are given as Python values."""
        namespace_option = ("--namespace", namespace) if namespace else ()
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self.kubectl("apply", "--server-side", "--force-conflicts", *namespace_option, "-f", "-", input=manifest)

    def write_account_kubeconfig(self, namespace: str, account: str, path: Path) -> None:
        """Write a kubeconfig with a token of the ServiceAccount, as a pod has it. The token is valid for two hours."""
        token = self.kubectl("create", "token", account, "-n", namespace, "--duration=2h").strip()
        config = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        for user in config["users"]:
            user["user"] = {"token": token}
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))

    def load_image(self, tar: Path) -> None:
        """Make the images of a docker archive available to pods (imagePullPolicy IfNotPresent or Never)."""
        self._local.load_image(tar)

    def down(self) -> None:
        """Stop the cluster."""
        self._local.down()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.created:
            self.down()
