"""Clusters that other tools run: a kind cluster on a developer's machine, and a cluster that already exists."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from functools import partial
from pathlib import Path

from tests.cluster.access import Access, Tools
from tests.cluster.command import run, run_or_none

KIND_GATEWAY = "172.18.0.1"
"""The usual gateway of docker's network `kind`, used when docker does not report the address."""


class ClusterChoiceError(RuntimeError):
    """The value of CLUSTER needs a program or a setting that is missing."""


def _program(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise ClusterChoiceError(f"install {name}: CLUSTER={os.environ.get('CLUSTER')} needs {name} on the PATH")
    return Path(path)


def kind_cluster(name: str) -> Access:
    """A kind cluster, created if it is missing. The prefix `aurora-` protects the developer's other clusters."""
    command, full_name = _program("kind"), f"aurora-{name}"
    kubeconfig = Path(tempfile.gettempdir(), f"{full_name}.kubeconfig")
    created = full_name not in run(command, "get", "clusters").split()
    if created:
        run(
            *(command, "create", "cluster", "--name", full_name, "--kubeconfig", kubeconfig, "--wait", "180s"),
            timeout_seconds=600,
        )
    else:
        run(command, "export", "kubeconfig", "--name", full_name, "--kubeconfig", kubeconfig)
    gateways = "{{range .IPAM.Config}}{{println .Gateway}}{{end}}"
    addresses = (run_or_none("docker", "network", "inspect", "kind", "-f", gateways) or "").split()
    gateway = next((address for address in addresses if "." in address), KIND_GATEWAY)
    return Access(
        name=name,
        tools=Tools(_program("kubectl"), _program("helm"), kubeconfig, context=f"kind-{full_name}"),
        host_address=os.environ.get("CLUSTER_HOST_ADDRESS") or gateway,
        load_image=partial(_load_into_kind, command, full_name),
        down=partial(_delete_kind, command, full_name),
        created=created,
    )


def _load_into_kind(command: Path, full_name: str, tar: Path) -> None:
    run(command, "load", "image-archive", "--name", full_name, tar, timeout_seconds=600)


def _delete_kind(command: Path, full_name: str) -> None:
    run(command, "delete", "cluster", "--name", full_name, timeout_seconds=300)


def existing_cluster(name: str) -> Access:
    """The cluster of the kubeconfig context CLUSTER_CONTEXT.

    The context must be named. Tests never run against the current context, which may be any cluster.
    """
    context = os.environ.get("CLUSTER_CONTEXT")
    if not context:
        raise ClusterChoiceError("set CLUSTER_CONTEXT to the kubeconfig context that CLUSTER=existing may use")
    kubectl = _program("kubectl")
    if context not in run(kubectl, "config", "get-contexts", "-o", "name").split():
        raise ClusterChoiceError(
            f"the kubeconfig has no context {context!r}: set CLUSTER_CONTEXT to one of its contexts"
        )
    files = os.environ.get("KUBECONFIG", "").split(os.pathsep)
    kubeconfig = Path(files[0]) if files[0] else Path.home() / ".kube" / "config"
    return Access(
        name=context,
        tools=Tools(kubectl, _program("helm"), kubeconfig, context=context),
        host_address=os.environ.get("CLUSTER_HOST_ADDRESS", ""),
        load_image=partial(_load_into_existing, context),
        down=lambda: None,
        created=False,
    )


def _load_into_existing(context: str, tar: Path) -> None:
    command = os.environ.get("CLUSTER_LOAD")
    if not command:
        raise ClusterChoiceError(
            f"set CLUSTER_LOAD to the command that loads an image archive into {context}, such as 'minikube image load'"
        )
    run(*shlex.split(command), tar, timeout_seconds=600)
