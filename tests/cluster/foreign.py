"""Clusters that are not ours to build: kind on a developer's machine, and one that exists already."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from functools import partial
from pathlib import Path

from tests.cluster.access import Access
from tests.cluster.command import attempt, run


class ClusterChoiceError(RuntimeError):
    """CLUSTER asks for something that this machine or its settings do not allow, and why."""


def _program(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise ClusterChoiceError(f"install {name}: CLUSTER={os.environ.get('CLUSTER')} uses the machine's own")
    return Path(found)


def kind(name: str) -> Access:
    """A kind cluster of our own name prefix, so that a developer's other clusters are never touched."""
    command, full = _program("kind"), f"aurora-{name}"
    kubeconfig = Path(tempfile.gettempdir(), f"{full}.kubeconfig")
    created = full not in run(command, "get", "clusters").split()
    if created:
        run(command, "create", "cluster", "--name", full, "--kubeconfig", kubeconfig, "--wait", "180s", timeout=600)
    else:
        run(command, "export", "kubeconfig", "--name", full, "--kubeconfig", kubeconfig)
    gateways = "{{range .IPAM.Config}}{{println .Gateway}}{{end}}"
    addresses = (attempt("docker", "network", "inspect", "kind", "-f", gateways) or "").split()
    return Access(
        name=name,
        kubeconfig=kubeconfig,
        kubectl=_program("kubectl"),
        helm=_program("helm"),
        host_address=os.environ.get("CLUSTER_HOST_ADDRESS") or next((a for a in addresses if "." in a), "172.18.0.1"),
        load_image=lambda tar: _ignore(run(command, "load", "image-archive", "--name", full, tar, timeout=600)),
        down=lambda: _ignore(run(command, "delete", "cluster", "--name", full, timeout=300)),
        created=created,
        context=f"kind-{full}",
    )


def existing(name: str) -> Access:
    """The cluster of a context that is named on purpose: tests never run against whatever happens to be current."""
    context = os.environ.get("CLUSTER_CONTEXT")
    if not context:
        raise ClusterChoiceError("set CLUSTER_CONTEXT to the kubeconfig context that CLUSTER=existing may use")
    kubectl = _program("kubectl")
    if context not in run(kubectl, "config", "get-contexts", "-o", "name").split():
        raise ClusterChoiceError(f"the kubeconfig has no context named {context!r} (CLUSTER_CONTEXT)")
    files = os.environ.get("KUBECONFIG", "").split(os.pathsep)
    return Access(
        name=context,
        kubeconfig=Path(files[0]) if files[0] else Path.home() / ".kube" / "config",
        kubectl=kubectl,
        helm=_program("helm"),
        host_address=os.environ.get("CLUSTER_HOST_ADDRESS", ""),
        load_image=partial(_load_existing, context),
        down=lambda: None,
        created=False,
        context=context,
    )


def _load_existing(context: str, tar: Path) -> None:
    command = os.environ.get("CLUSTER_LOAD")
    if not command:
        raise ClusterChoiceError(
            f"set CLUSTER_LOAD to the command that loads an image archive into {context}, such as 'minikube image load'"
        )
    run(*shlex.split(command), tar, timeout=600)


def _ignore(_: str) -> None:
    """Makes an operation out of a question."""
